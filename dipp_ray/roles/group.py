"""A group of ranks: Ray actors that share one torch.distributed world, and live and die together."""

from collections.abc import Callable, Sequence

import ray

from dipp_ray.config import RunConfig
from dipp_ray.roles.waiting import wait_all

# How often a group is started anew when another process took its port between the offer and the rendezvous.
RENDEZVOUS_TRIES = 3


class Group:
    def __init__(
        self, actor, config: RunConfig, options: list[dict], say: Callable[[str], None], ready: Sequence | None = None
    ):
        """Create a rank for each entry of `options` (arguments of an actor's `.options()`); `meet` joins them.

        ready: for each rank a process that is there already and takes its place, or None.
        """
        self.name = actor.__ray_metadata__.modified_class.group
        self.actor, self.config, self.options, self.say = actor, config, options, say
        self._create(ready or [None] * len(options))

    def _create(self, ready: Sequence) -> None:
        self.ranks = [
            spare or self.actor.options(**given).remote(self.config)
            for spare, given in zip(ready, self.options, strict=True)
        ]

    def meet(self) -> "Group":
        """Join the ranks to one world; each loads its network."""
        wait_s = self.config.roles.wait_s
        for attempt in range(RENDEZVOUS_TRIES):
            offer = self.ranks[0].meeting_point.remote()
            host, port = wait_all([offer], f"{self.name} ranks", wait_s, self.say)[0]
            try:
                world = len(self.ranks)
                meetings = [actor.meet.remote(rank, world, host, port) for rank, actor in enumerate(self.ranks)]
                wait_all(meetings, f"{self.name}: weights and rendezvous", wait_s, self.say)
                return self
            except ray.exceptions.RayTaskError as error:
                if attempt + 1 == RENDEZVOUS_TRIES or "EADDRINUSE" not in str(error):
                    raise
                self.say(f"{self.name}: port {port} was taken meanwhile, trying another")
                self.kill()
                self._create([None] * world)
        raise AssertionError("unreachable")

    def kill(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)
