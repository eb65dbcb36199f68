"""Room in the cluster for every worker: the pure plan of `plan.py`, taken from Ray and held.

The reward role is placed by Ray Serve: the plan finds room for it, and `reserve` leaves that room free.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray._private.state import available_resources_per_node  # the public answer is summed over all nodes
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from dipp_ray.errors import UserError
from dipp_ray.reporting.pace import Pace
from dipp_ray.training.placement_table import as_text
from dipp_ray.training.plan import SERVED, Node, Plan, Request, plan, requests

__all__ = ["Node", "Placement", "Plan", "Request", "cluster_nodes", "plan", "requests", "reserve"]

NODE_ID = "ray.io/node-id"  # label that every Ray node carries
POLL_S = 1.0  # seconds between two looks at the cluster
REPEAT_S = 10.0  # seconds between two messages about the same wait
GRANT_S = 30.0  # seconds for Ray to grant what is free; longer means that somebody else was faster


def cluster_nodes() -> list[Node]:
    """The living nodes of the connected cluster, with what is used of each."""
    free = available_resources_per_node()
    nodes = []
    for entry in ray.nodes():
        if not entry["Alive"]:
            continue
        total, left = entry["Resources"], free.get(entry["NodeID"])
        # Only the node's own resources: the others are keys that placement groups make up. A resource that is used
        # up is not listed; a node that is not listed at all has not reported yet, and counts as free.
        used = {name: amount - left.get(name, 0.0) for name, amount in total.items()} if left is not None else {}
        used = {name: amount for name, amount in used.items() if amount > 1e-6}
        name = entry["NodeName"] or entry["NodeManagerAddress"]
        nodes.append(Node(entry["NodeID"], name, total, used, dict(entry["Labels"])))
    return nodes


@dataclass
class Placement:
    """Room held in the cluster for every planned worker but the served ones."""

    plan: Plan
    group: PlacementGroup | None  # Ray's placement group; None where nobody asks for anything countable
    bundles: dict[tuple[str, int], int]

    def options(self, role: str, index: int) -> dict:
        """Keyword arguments of `.options()` for the actor of this worker."""
        key = (role, index)
        request = next((r for r in self.plan.requests if (r.role, r.index) == key and role not in SERVED), None)
        if request is None:
            raise ValueError(f"no room was reserved for {role} {index}")
        options = {"num_cpus": request.cpus, "num_gpus": request.gpus, "resources": request.resources}
        if request.accelerator:
            options["accelerator_type"] = request.accelerator
        if key in self.bundles:
            strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.bundles[key])
        else:
            strategy = NodeAffinitySchedulingStrategy(self.plan.where[key].id, soft=False)
        if request.gpus == 0 and self.plan.where[key].total.get("GPU", 0) > 0:
            # Ray shows all GPUs to an actor that asked for none.
            options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        return options | {"scheduling_strategy": strategy}

    def release(self) -> None:
        """Give the room back; actors still in it are killed by Ray. Once or often."""
        if self.group is not None:
            remove_placement_group(self.group)
            self.group = None


def reserve(asked: Plan | list[Request], wait_s: float, say: Callable[[str], None] = print) -> Placement:
    """Hold the room for a plan (or for requests), waiting up to `wait_s` seconds for the cluster to have it.

    The plan is made anew at every look, for nodes come, go and fill up. Raises UserError with the table when the time
    is over; nothing is held then.
    """
    wanted = list(asked.requests) if isinstance(asked, Plan) else list(asked)
    pace = Pace(REPEAT_S, first_s=0.0)
    while True:
        current = plan(wanted, cluster_nodes())
        waited = pace.elapsed
        if current.possible and not current.waits:
            placement = _hold(current, max(POLL_S, wait_s - waited))
            if placement is not None:
                return placement
        if waited >= wait_s:
            raise UserError(
                f"after {waited:.0f} s the cluster still has no room for this run: ask for less, free or add nodes, "
                f"or raise roles.wait_s\n{as_text(current.table())}"
            )
        if pace.due():
            say(_waiting(current, waited, wait_s))
        time.sleep(POLL_S)


def _hold(current: Plan, timeout: float) -> Placement | None:
    """Ray's placement group of exactly this plan, or None when Ray could not give it."""
    held = [r for r in current.requests if r.role not in SERVED and r.amounts]
    if not held:
        return Placement(current, None, {})
    nodes = [current.where[r.role, r.index] for r in held]
    group = placement_group(
        [r.amounts for r in held], "PACK", bundle_label_selector=[{NODE_ID: node.id} for node in nodes]
    )
    try:
        ready = group.wait(min(timeout, GRANT_S))
    except BaseException:
        remove_placement_group(group)
        raise
    if not ready:
        remove_placement_group(group)
        return None
    return Placement(current, group, {(r.role, r.index): i for i, r in enumerate(held)})


def _waiting(current: Plan, waited: float, wait_s: float) -> str:
    has = ", ".join(f"{total:g} {name} ({free:g} free)" for name, (total, free) in _sums(current.nodes).items())
    lacks = next(iter(current.unmet.values()), "room that is in use now")
    return f"waiting {waited:.0f} of {wait_s:.0f} s for {len(current.requests)} workers; cluster: {has}; lacks: {lacks}"


def _sums(nodes: tuple[Node, ...]) -> dict[str, tuple[float, float]]:
    return {name: (sum(n.total.get(name, 0) for n in nodes), sum(n.free.get(name, 0) for n in nodes))
            for name in ("CPU", "GPU")}  # fmt: skip
