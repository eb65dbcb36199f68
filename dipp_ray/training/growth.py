"""Why a session gives way to another at the next boundary: more room has come, or a node is about to leave."""

import time

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from dipp_ray.config import RunConfig
from dipp_ray.training.draining import draining_nodes
from dipp_ray.training.placement import Placement
from dipp_ray.training.plan import Request, group_requests
from dipp_ray.training.sizes import Sizes, next_larger

GROWTH = "there is room for more ranks"
LOOK_S = 1.0  # seconds between two looks at the cluster


class Demand:
    """Room for the ranks that a session lacks to its next larger size, asked of Ray and not waited for.

    A pending placement group is what makes an autoscaler start nodes. sizes: the session's; None asks for nothing.
    """

    def __init__(self, config: RunConfig, sizes: Sizes | None):
        larger = next_larger(config, sizes) if sizes else None
        held = {(request.role, request.index) for request in (group_requests(config, sizes) if sizes else ())}
        wanted = group_requests(config, larger) if larger else []
        self.requests: list[Request] = [r for r in wanted if (r.role, r.index) not in held and r.amounts]
        self.group: PlacementGroup | None = None
        if self.requests:
            selectors = [request.labels for request in self.requests]
            self.group = placement_group([r.amounts for r in self.requests], bundle_label_selector=selectors)

    def lacking(self) -> list[Request]:
        """What is waited for."""
        return [] if self.group is None or self.met else self.requests

    @property
    def met(self) -> bool:
        # Not `wait(0)`: that may say no of room that has come.
        return self.group is not None and placement_group_table(self.group)["state"] == "CREATED"

    def give_to(self, placement: Placement) -> None:
        """The room, if it has come, is that placement's from now on, to be given up with it."""
        if self.group is not None and self.met:
            placement.held.append((self.group, self.requests))
        elif self.group is not None:
            remove_placement_group(self.group)
        self.group = None

    def close(self) -> None:
        if self.group is not None:
            remove_placement_group(self.group)
        self.group = None


class Surroundings:
    """What changes around one session, looked at once a second at most. asks: for room for more ranks."""

    def __init__(self, config: RunConfig, sizes: Sizes, placements: list[Placement], asks: bool):
        self.demand = Demand(config, sizes if asks else None)
        self.said: str | None = None
        self.looked = time.monotonic()
        self.placements = placements  # what they hold changes with the teacher pool
        self.leaving: dict[str, float] = {}  # nodes that are about to, with when: see `draining_nodes`
        self.names = {entry["NodeID"]: entry["NodeName"] or entry["NodeManagerAddress"] for entry in ray.nodes()}

    def reason_to_move(self) -> str | None:
        """Why another session is due, or None; from the first reason on always that one."""
        now = time.monotonic()
        if self.said is None and now - self.looked >= LOOK_S:
            self.looked = now
            self.said = self._draining() or (GROWTH if self.demand.met else None)
        return self.said

    def _draining(self) -> str | None:
        self.leaving = draining_nodes()
        ours = {node for placement in self.placements for node in placement.node_ids()} if self.leaving else set()
        for node, deadline in self.leaving.items():
            if node in ours:
                left = f" in {max(0.0, deadline - time.time()):.0f} s" if deadline else ""
                return f"node {self.names.get(node, node)} leaves the cluster{left}"
        return None

    def close(self) -> None:
        self.demand.close()
