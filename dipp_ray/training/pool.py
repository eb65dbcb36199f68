"""The teachers of a run: as many as the cluster can give, between the fewest and the most, whatever session trains.

Teachers are stateless, and any of them may answer any question: a pool grows and shrinks in the middle of a step.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from dipp_ray.config import RunConfig
from dipp_ray.roles.teacher import Teacher
from dipp_ray.training.placement import Placement, cluster_nodes
from dipp_ray.training.plan import Plan, Request, requests
from dipp_ray.training.sizes import allowed_sizes

LOOK_S = 1.0  # seconds between two looks at the cluster
GONE_S = 10.0  # after so long without room a teacher is given up, where the pool may do without


@dataclass
class Coming:
    """One more teacher: its room, asked of Ray, and once that has come the actor and what tells that it is ready."""

    request: Request
    group: PlacementGroup
    actor: Any = None
    ready: ray.ObjectRef | None = None


class Pool:
    """placement: the room of the roles that outlive sessions. members: teachers by index."""

    def __init__(self, config: RunConfig, placement: Placement):
        self.config, self.placement = config, placement
        self.members: dict[int, Any] = {}
        largest = max(allowed_sizes(config), key=lambda sizes: sizes.teacher)
        self.requests = [request for request in requests(config, largest) if request.role == "teacher"]
        self.fewest = min(sizes.teacher for sizes in allowed_sizes(config))
        self.coming: Coming | None = None
        self.without_room: dict[int, float] = {}  # since when
        self.looked = time.monotonic()

    def start(self) -> None:
        """Those that the plan has room for, without waiting for them."""
        for request in self.placement.plan.requests:
            if request.role == "teacher":
                self.members[request.index] = self._started(self.placement, request.index)

    def follow(self, say: Callable[[str], None]) -> None:
        """Look at the cluster, once a second at most: give up who has lost its room, take in who has come, and ask for
        one more where there may be more."""
        now = time.monotonic()
        if now - self.looked < LOOK_S or len(self.requests) == self.fewest:
            return
        self.looked = now
        self._give_up(now, say)
        if self.coming is None and len(self.members) < len(self.requests):
            self._ask()
        elif self.coming is not None:
            self._take_in(self.coming, say)

    def withdraw(self) -> None:
        """Ask for nothing now: room that comes free is somebody else's. Asked again by the next look."""
        if self.coming is not None and self.coming.actor is None:
            remove_placement_group(self.coming.group)
            self.coming = None

    def end(self) -> None:
        self.withdraw()
        if self.coming is not None:
            ray.kill(self.coming.actor)
            remove_placement_group(self.coming.group)
            self.coming = None
        for actor in self.members.values():
            ray.kill(actor)

    def move(self, index: int, room: Placement) -> None:
        """Have one start anew in other room; nothing is asked of it now."""
        self.members[index] = self._started(room, index)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _started(self, room: Placement, index: int) -> Any:
        return Teacher.options(**room.options("teacher", index)).remote(self.config)  # type: ignore[attr-defined]

    def _give_up(self, now: float, say: Callable[[str], None]) -> None:
        entries = {entry[1][0].index: entry for entry in self.placement.held if entry[1][0].role == "teacher"}
        lost = {index for index, entry in entries.items() if placement_group_table(entry[0])["state"] != "CREATED"}
        self.without_room = {index: self.without_room.get(index, now) for index in lost}
        for index, since in self.without_room.items():
            if now - since >= GONE_S and len(self.members) > self.fewest:
                left = len(self.members) - 1
                say(f"teacher {index} has had no room for {now - since:.0f} s: the pool goes on with {left}")
                ray.kill(self.members.pop(index))  # what it owes is asked of another
                self.placement.held.remove(entries[index])
                remove_placement_group(entries[index][0])

    def _ask(self) -> None:
        request = next(request for request in self.requests if request.index not in self.members)
        if request.amounts:
            group = placement_group([request.amounts], bundle_label_selector=[request.labels])
            self.coming = Coming(request, group)

    def _take_in(self, coming: Coming, say: Callable[[str], None]) -> None:
        index, table = coming.request.index, placement_group_table(coming.group)
        if table["state"] != "CREATED":
            return
        if coming.actor is None:
            node = next(node for node in cluster_nodes() if node.id == table["bundles_to_node_id"][0])
            plan = Plan((coming.request,), (node,), {("teacher", index): node}, {})
            say(f"there is room for teacher {index} on {node.name}")
            coming.actor = self._started(Placement(plan, [(coming.group, [coming.request])]), index)
            coming.ready = coming.actor.__ray_ready__.remote()
        elif ray.wait([coming.ready], timeout=0)[0]:
            self.members[index] = coming.actor
            self.placement.held.append((coming.group, [coming.request]))
            self.coming = None
            say(f"the pool has {len(self.members)} teachers now")
