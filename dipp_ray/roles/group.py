"""A group of ranks: Ray actors that share one torch.distributed world and live and die together."""

from collections.abc import Callable

import ray

from dipp_ray.config import RunConfig
from dipp_ray.roles.waiting import wait_all

# How often a group is started anew when another process took its port between the offer and the rendezvous.
RENDEZVOUS_TRIES = 3


class Group:
    def __init__(self, name: str, ranks: list, parameters: int, timeout_s: float, say: Callable[[str], None]):
        self.name, self.ranks, self.parameters = name, ranks, parameters
        self.timeout_s, self.say = timeout_s, say

    @classmethod
    def start(cls, actor, config: RunConfig, options: list[dict], folder: str, say: Callable[[str], None]) -> "Group":
        """Start one rank for each entry of `options` (keyword arguments of `.options()`), with folder's network."""
        name = actor.__ray_metadata__.modified_class.group
        for attempt in range(RENDEZVOUS_TRIES):
            ranks = [actor.options(**given).remote(config, rank) for rank, given in enumerate(options)]
            host, port = wait_all([ranks[0].meeting_point.remote()], f"{name} ranks", config.roles.wait_s, say)[0]
            try:
                meetings = [rank.meet.remote(host, port, folder) for rank in ranks]
                parameters = wait_all(meetings, f"{name}: weights and rendezvous", config.roles.wait_s, say)[0]
                return cls(name, ranks, parameters, config.roles.step_timeout_s, say)
            except ray.exceptions.RayTaskError as error:
                for rank in ranks:
                    ray.kill(rank)
                if attempt + 1 == RENDEZVOUS_TRIES or "EADDRINUSE" not in str(error):
                    raise
                say(f"{name}: port {port} was taken meanwhile, trying another")
        raise AssertionError("unreachable")

    def rank_of(self, micro_batch: int):
        """The rank that holds micro-batch m of every step; neighbours lie on different ranks."""
        return self.ranks[micro_batch % len(self.ranks)]

    def all(self, method: str, *arguments) -> list:
        """Call a method on all ranks together and wait for their answers."""
        answers = [getattr(rank, method).remote(*arguments) for rank in self.ranks]
        return wait_all(answers, f"{self.name}: {method}", self.timeout_s, self.say)

    def kill(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)
