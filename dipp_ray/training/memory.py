"""The state of both groups in the memory of other nodes: newer than any checkpoint, and read without storage."""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dipp_ray.config import RunConfig
from dipp_ray.roles.keeper import Keeper, ShareKey
from dipp_ray.roles.waiting import wait_all
from dipp_ray.training.actors import RayActors
from dipp_ray.training.keeping import complete_steps, keeper_nodes
from dipp_ray.training.placement import living_nodes
from dipp_ray.training.tasks import GROUPS, Role

ASK_S = 10.0  # a keeper that does not say within so long what it has is taken for lost


@dataclass(frozen=True)
class InMemory:
    """The state after a step as keepers hold it: for each share, who has it."""

    step: int
    shares: dict[ShareKey, ray.actor.ActorHandle] = field(hash=False)

    def asked(self, group: Role) -> tuple:
        return "take_up", *((key, keeper) for key, keeper in sorted(self.shares.items()) if key.group == group)

    def __str__(self) -> str:
        return f"the memory of step {self.step}"


class StateMemory:
    """The keepers of one run, over all its sessions."""

    def __init__(self, config: RunConfig):
        self.every, self.wait_s = config.checkpoint.memory_every, config.roles.wait_s
        self.keepers: dict[str, ray.actor.ActorHandle] = {}  # by node
        self.underway: dict[int, list] = {}  # step -> references that are there when a share has arrived
        self.complete = 0  # the last step of which everything has arrived
        self.nodes: set[str] = set()  # whose keepers the ranks send to
        self.lost = False  # a keeper that they send to is, or is about to be, as far as is known

    def is_due(self, done: int) -> bool:
        return bool(self.every) and done % self.every == 0

    def attach(self, actors: RayActors, say: Callable[[str], None]) -> None:
        """Say to each rank who keeps its share, with keepers started where there are none."""
        if not self.every:
            return
        workers = [(role, rank) for role in GROUPS for rank in range(actors.count(role))]
        asked = [actors.of(role, rank).node_id.remote() for role, rank in workers]
        ranks = dict(zip(workers, wait_all(asked, "the ranks", self.wait_s, say), strict=True))
        places = keeper_nodes(ranks, living_nodes())
        self._held()
        if self.lost:
            say("a keeper of the state is lost, or its node leaves: from here on the state is kept anew elsewhere")
        self.lost, self.nodes = False, {node for nodes in places.values() for node in nodes}
        for node in self.nodes - self.keepers.keys():
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            self.keepers[node] = Keeper.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        asked = [
            actors.of(role, rank).keep_with.remote([self.keepers[node] for node in nodes])
            for (role, rank), nodes in places.items()
        ]
        asked += [keeper.have.remote() for keeper in self.keepers.values()]
        wait_all(asked, "the keepers of the state", self.wait_s, say)

    def leave(self, nodes: Collection[str]) -> None:
        """These nodes are about to leave the cluster: what is kept there alone would be lost with them."""
        self.lost = self.lost or not self.nodes.isdisjoint(nodes)

    def newest(self, steps: list[int] | None = None) -> InMemory | None:
        """The newest complete state among `steps` that the living keepers have."""
        found = {key: self.keepers[node] for node, keys in self._held().items() for key in keys}
        whole = [step for step in complete_steps(found) if steps is None or step in steps]
        if not whole:
            return None
        return InMemory(whole[-1], {key: keeper for key, keeper in found.items() if key.step == whole[-1]})

    def _held(self) -> dict[str, list[ShareKey]]:
        """What each keeper has, by node. One that does not say is lost: it is ended, and no longer among them."""
        asked = {node: keeper.have.remote() for node, keeper in self.keepers.items()}
        if asked:
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=ASK_S)
        found = {}
        for node, answer in asked.items():
            try:
                found[node] = [ShareKey(*key) for key in ray.get(answer, timeout=0)]
            except RayError:
                ray.kill(self.keepers.pop(node))
                self.lost = True
        return found

    def go_back(self, step: int) -> None:
        """The run goes on from `step`: what was kept later is of a session that is no more."""
        self.underway, self.complete = {}, min(self.complete, step)
        for keeper in self.keepers.values():
            keeper.forget.remote(step)

    def sent(self, step: int, arrivals: list) -> None:
        """Shares of `step` are on their way; `arrivals` are references that are there when they are kept."""
        self.underway.setdefault(step, []).extend(arrivals)

    def look(self) -> int:
        """The last step of which all shares have arrived; without waiting."""
        for step in sorted(self.underway):
            arrivals = self.underway[step]
            if len(ray.wait(arrivals, num_returns=len(arrivals), timeout=0)[0]) < len(arrivals):
                break
            del self.underway[step]
            try:
                ray.get(arrivals)
                self.complete = step
            except RayError:  # of a keeper; where a rank is lost, the executor sees it
                self.lost = True
        return self.complete

    def close(self) -> None:
        for keeper in self.keepers.values():
            with suppress(RayError):
                ray.kill(keeper)
        self.keepers = {}
