"""The teachers of a run: as many as the cluster can give, between the fewest and the most, whatever session trains.

Teachers are stateless, and any of them may answer any question: a pool grows and shrinks in the middle of a step.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from dipp_ray.config import RunConfig
from dipp_ray.errors import RoleFailure
from dipp_ray.reporting.pace import Pace
from dipp_ray.roles.teacher import Teacher
from dipp_ray.roles.waiting import GOES_ON, SAY_EVERY_S, lost_actor, wait_all
from dipp_ray.training.placement import Placement, can_grow, cluster_nodes
from dipp_ray.training.plan import Plan, Request, compete, plan, requests
from dipp_ray.training.sizes import allowed_sizes

Say = Callable[[str], None]
LOOK_S = 1.0  # seconds between two looks at the cluster
GONE_S = 10.0  # after so long without room a teacher is given up, where the pool may do without
AGAIN_S = 60.0  # so long after one that did not come up another one is asked for


@dataclass
class Coming:
    """One more teacher: its room, asked of Ray, and once that has come the actor and what tells that it is ready."""

    request: Request
    group: PlacementGroup
    actor: Any = None
    ready: ray.ObjectRef | None = None


class Pool:
    """placement: the room of the roles that outlive sessions. members: teachers by index.

    ranks_lack: the room that ranks wait for, which comes first where a teacher could take it.
    """

    def __init__(self, config: RunConfig, placement: Placement):
        self.config, self.placement = config, placement
        self.members: dict[int, Any] = {}
        largest = max(allowed_sizes(config), key=lambda sizes: sizes.teacher)
        self.requests = [request for request in requests(config, largest) if request.role == "teacher"]
        self.fewest = min(sizes.teacher for sizes in allowed_sizes(config))
        self.ranks_lack: Callable[[], list[Request]] = list
        self.coming: Coming | None = None
        self.without_room: dict[int, float] = {}  # since when
        self.looked, self.not_before = time.monotonic(), 0.0

    def start(self) -> None:
        """Those that the plan has room for, without waiting for them."""
        for request in self.placement.plan.requests:
            if request.role == "teacher":
                self.members[request.index] = self._started(self.placement, request.index)

    def await_ready(self, wait_s: float, say: Say) -> None:
        """Wait until all members answer, following the cluster meanwhile. Raises RoleFailure."""
        pace, ready = Pace(SAY_EVERY_S, first_s=2.0), {}
        while True:
            self.follow(say)
            for actor in self.members.values():
                if actor not in ready:
                    ready[actor] = actor.__ray_ready__.remote()
            asked = [ready[actor] for actor in self.members.values()]
            there, missing = ray.wait(asked, num_returns=len(asked), timeout=0.2) if asked else ([], [])
            wait_all(there, "teacher", wait_s, say)  # raises what one of them raised
            if not missing:
                return
            if pace.elapsed > wait_s:
                late = f"{len(missing)} of {len(asked)} did not answer within {wait_s:g} s"
                raise RoleFailure(f"teacher: {late}; {GOES_ON}")
            if pace.due():
                say(f"waiting for teacher: {len(there)} of {len(asked)}, {pace.elapsed:.0f} s so far")

    def follow(self, say: Say) -> None:
        """Look at the cluster, once a second at most: give up who has lost its room, take in who has come, and ask for
        one more where there may be more."""
        now = time.monotonic()
        if now - self.looked < LOOK_S or len(self.requests) == self.fewest:
            return
        self.looked = now
        self._look_for_lost(now, say)
        if self.coming is not None:
            self._take_in(self.coming, say)
        elif len(self.members) < len(self.requests) and now >= self.not_before:
            self._ask()

    def withdraw(self) -> None:
        """Ask for nothing now: room that comes free is somebody else's. Asked again by the next look."""
        if self.coming is not None and self.coming.actor is None:
            self._drop()

    def spare(self) -> list[int]:
        """Those that the pool may do without, the last ones first."""
        return sorted(self._entries().keys() & self.members.keys(), reverse=True)[: len(self.members) - self.fewest]

    def room_of(self, index: int) -> Placement:
        return self.placement.only(self._entries()[index])

    def give_up(self, index: int) -> None:
        """One fewer: what it owes is asked of another."""
        ray.kill(self.members.pop(index))
        entry = self._entries()[index]
        self.placement.held.remove(entry)
        remove_placement_group(entry[0])

    def move(self, index: int, room: Placement) -> None:
        """Have one start anew in other room; nothing is asked of it now."""
        self.members[index] = self._started(room, index)

    def end(self) -> None:
        """End all of them, and ask for no more. Once or often."""
        if self.coming is not None:
            self._drop()
        while self.members:
            ray.kill(self.members.popitem()[1])

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _started(self, room: Placement, index: int) -> Any:
        return Teacher.options(**room.options("teacher", index)).remote(self.config)  # type: ignore[attr-defined]

    def _entries(self) -> dict[int, tuple[PlacementGroup, list[Request]]]:
        return {entry[1][0].index: entry for entry in self.placement.held if entry[1][0].role == "teacher"}

    def _look_for_lost(self, now: float, say: Say) -> None:
        lost = {
            index for index, entry in self._entries().items() if placement_group_table(entry[0])["state"] != "CREATED"
        }
        self.without_room = {index: self.without_room.get(index, now) for index in lost}
        for index, since in self.without_room.items():
            if now - since >= GONE_S and len(self.members) > self.fewest:
                left = len(self.members) - 1
                say(f"teacher {index} has had no room for {now - since:.0f} s: the pool goes on with {left}")
                self.give_up(index)

    def _ask(self) -> None:
        """Where there is room, or somebody who would make some; else the first room that comes free might be taken from
        who has just lost it, such as a replica of the reward service."""
        request = next(request for request in self.requests if request.index not in self.members)
        nodes = cluster_nodes()
        lacking = [other for other in self.ranks_lack() if compete(request, other, nodes)]
        found = plan([request], nodes)
        if request.amounts and not lacking and (can_grow() or (found.possible and not found.waits)):
            group = placement_group([request.amounts], bundle_label_selector=[request.labels])
            self.coming = Coming(request, group)

    def _take_in(self, coming: Coming, say: Say) -> None:
        index, table = coming.request.index, placement_group_table(coming.group)
        if table["state"] != "CREATED":
            if coming.actor is not None:  # its room is lost again
                self._drop()
        elif coming.actor is None:
            nodes = cluster_nodes()
            node = next((node for node in nodes if node.id == table["bundles_to_node_id"][0]), None)
            if node is None:  # it is about to leave
                return self._drop()
            here = Plan((coming.request,), tuple(nodes), {("teacher", index): node}, {})
            say(f"there is room for teacher {index} on {node.name}")
            coming.actor = self._started(Placement(here, [(coming.group, [coming.request])]), index)
            coming.ready = coming.actor.__ray_ready__.remote()
        elif ray.wait([coming.ready], timeout=0)[0]:
            try:
                ray.get(coming.ready)
            except RayError as error:
                reason = lost_actor(error)[1] if isinstance(error, RayActorError) else type(error).__name__
                say(f"teacher {index} did not come up, and the pool goes on without it: {reason}")
                self.not_before = time.monotonic() + AGAIN_S
                return self._drop()
            self.members[index] = coming.actor
            self.placement.held.append((coming.group, [coming.request]))
            self.coming = None
            say(f"the pool has {len(self.members)} teachers now")

    def _drop(self) -> None:
        """Who was coming does not."""
        assert self.coming is not None
        if self.coming.actor is not None:
            ray.kill(self.coming.actor)
        remove_placement_group(self.coming.group)
        self.coming = None
