"""Room in the cluster for every worker: the pure plan of `plan.py`, taken from Ray and held.

A group of ranks has one placement group on the nodes that the plan names, made anew when it is opened again. Each other
worker has one of its own, which Ray moves to another fitting node where its own is lost, and the actor with it.
The reward role is placed by Ray Serve: the plan finds room for it, and `reserve` leaves that room free.
"""

import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import ray
from ray._private.state import available_resources_per_node, state  # the public answer is summed over all nodes
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from dipp_ray.errors import UserError
from dipp_ray.reporting.pace import Pace
from dipp_ray.training.draining import draining_nodes
from dipp_ray.training.placement_table import as_text
from dipp_ray.training.plan import GROUPS, SERVED, Node, Plan, Request, best_plan

NODE_ID = "ray.io/node-id"  # label that every Ray node carries
POLL_S = 1.0  # seconds between two looks at the cluster
REPEAT_S = 10.0  # seconds between two messages about the same wait
GRANT_S = 30.0  # seconds for Ray to grant what is free; longer means that somebody else was faster

Worker = tuple[str, int]  # (role, index)


def living_nodes() -> set[str]:
    """The ids of the nodes that are there and are to stay."""
    return {entry["NodeID"] for entry in ray.nodes() if entry["Alive"]} - draining_nodes().keys()


def cluster_nodes(given_back: "Sequence[Placement]" = ()) -> list[Node]:
    """The living nodes of the connected cluster that are to stay, with what is used of each.

    given_back: room that its holder gives up for what is planned: it counts as free.
    """
    free, leaving = available_resources_per_node(), draining_nodes()
    ours = [placement.amounts_by_node() for placement in given_back]
    nodes = []
    for entry in ray.nodes():
        if not entry["Alive"] or entry["NodeID"] in leaving:
            continue
        total, left = entry["Resources"], free.get(entry["NodeID"])
        # Only the node's own resources: the others are keys that placement groups make up. A resource that is used
        # up is not listed; a node that is not listed at all has not reported yet, and counts as free.
        used = {name: amount - left.get(name, 0.0) for name, amount in total.items()} if left is not None else {}
        for amounts in ours:
            for name, amount in amounts.get(entry["NodeID"], {}).items():
                used[name] = used.get(name, 0.0) - amount
        used = {name: amount for name, amount in used.items() if amount > 1e-6}
        name = entry["NodeName"] or entry["NodeManagerAddress"]
        nodes.append(Node(entry["NodeID"], name, total, used, dict(entry["Labels"])))
    return nodes


@dataclass
class Placement:
    """Room held in the cluster for planned workers; `held` are Ray's placement groups, each with its workers in order.

    `plan` is what was found at first: an actor that Ray has moved is no longer where it says.
    """

    plan: Plan
    held: list[tuple[PlacementGroup, list[Request]]] = field(default_factory=list)

    def options(self, role: str, index: int) -> dict:
        """Keyword arguments of `.options()` for the actor of this worker."""
        key = (role, index)
        request = next((r for r in self.plan.requests if (r.role, r.index) == key and role not in SERVED), None)
        if request is None:
            raise ValueError(f"no room was reserved for {role} {index}")
        options = {"num_cpus": request.cpus, "num_gpus": request.gpus, "resources": request.resources}
        if request.accelerator:
            options["accelerator_type"] = request.accelerator
        strategy = NodeAffinitySchedulingStrategy(self.plan.where[key].id, soft=role not in GROUPS)
        for group, workers in self.held:
            if request in workers:
                strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=workers.index(request))
        if request.gpus == 0 and any(node.total.get("GPU", 0) > 0 for node in self.plan.nodes):
            # Ray shows all GPUs to an actor that asked for none.
            options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        return options | {"scheduling_strategy": strategy}

    def split(self, roles: Collection[str]) -> tuple["Placement", "Placement"]:
        """The room of these roles' workers, and the rest, each to be released by itself."""
        theirs = [entry for entry in self.held if entry[1][0].role in roles]
        return Placement(self.plan, theirs), Placement(self.plan, [entry for entry in self.held if entry not in theirs])

    def only(self, entry: tuple[PlacementGroup, list[Request]]) -> "Placement":
        """One of the placement groups held, by itself."""
        return Placement(self.plan, [entry])

    def node_ids(self, workers: Collection[Worker] | None = None) -> set[str]:
        """The nodes on which these workers are now, as far as Ray says; None: all of them."""
        return {
            node_id
            for group, held in self.held
            for index, node_id in placement_group_table(group)["bundles_to_node_id"].items()
            if workers is None or (held[index].role, held[index].index) in workers
        }

    def amounts_by_node(self) -> dict[str, dict[str, float]]:
        """What is held of each node's resources."""
        found: dict[str, dict[str, float]] = {}
        for group, workers in self.held:
            for index, node_id in placement_group_table(group)["bundles_to_node_id"].items():
                amounts = found.setdefault(node_id, {})
                for name, amount in workers[index].amounts.items():
                    amounts[name] = amounts.get(name, 0.0) + amount
        return found

    def release(self) -> None:
        """Give the room back; actors still in it are killed by Ray. Once or often."""
        while self.held:
            remove_placement_group(self.held.pop()[0])


def reserve(
    choices: Sequence[list[Request]],
    wait_s: float,
    say: Callable[[str], None] = print,
    instead_of: Placement | None = None,
) -> Placement:
    """Hold the room of the first of the choices that the cluster can give now, waiting up to `wait_s` seconds for any.

    The plan is made anew at every look, for nodes come, go and fill up. While it waits, the smallest choice is asked of
    Ray, which is what makes an autoscaler start nodes. instead_of: room that is given up for it, at once where there is
    some for a choice. Raises UserError with the table when the time is over; nothing is held then.
    """
    pace = Pace(REPEAT_S, first_s=0.0)
    asked: Placement | None = None  # pending, or come: ours to give up in either case
    try:
        while True:
            given_up = [placement for placement in (instead_of, asked) if placement is not None]
            current = best_plan(choices, cluster_nodes(given_up))
            waited = pace.elapsed
            if current.possible and not current.waits:
                for placement in given_up:
                    placement.release()
                found = _hold(current, max(POLL_S, wait_s - waited))
                if found is not None:
                    return found
            if waited >= wait_s:
                raise UserError(
                    f"after {waited:.0f} s the cluster still has no room for this run: ask for less, free or add "
                    f"nodes, or raise roles.wait_s\n{as_text(current.table())}"
                )
            if pace.due():
                say(_waiting(current, waited, wait_s))
            if asked is None or not asked.held:
                asked = _ask(current, choices[-1])
            time.sleep(POLL_S * random.uniform(0.5, 1.5))  # two runs that are in each other's way do not stay in step
    finally:
        if asked is not None:
            asked.release()


def _ask(current: Plan, requests: list[Request]) -> Placement:
    """Demand for these workers, wherever they fit: a placement group that is not waited for."""
    asked = [request for request in requests if request.amounts]
    return Placement(current, [(_group(asked, [request.labels for request in asked]), asked)] if asked else [])


def can_grow() -> bool:
    """Whether an autoscaler may add nodes to the connected cluster (version 2, as KubeRay runs it, says so)."""
    return state.get_cluster_config() is not None


def _hold(current: Plan, timeout: float) -> Placement | None:
    """Ray's placement groups of this plan, or None when Ray could not give them all."""
    placement = Placement(current)
    asked = [r for r in current.requests if r.role not in SERVED and r.amounts]
    try:
        for role in GROUPS:
            if ranks := [request for request in asked if request.role == role]:
                nodes = [{NODE_ID: current.where[r.role, r.index].id} for r in ranks]
                placement.held.append((_group(ranks, nodes), ranks))
        until = time.monotonic() + min(timeout, GRANT_S)
        for request in [None, *(request for request in asked if request.role not in GROUPS)]:
            if request is not None:
                placement.held.append((_group([request], [request.labels]), [request]))
            # One after the other: what is bound to certain nodes comes first.
            if not all(group.wait(max(0.0, until - time.monotonic())) for group, _ in placement.held):
                placement.release()
                return None
    except BaseException:
        placement.release()
        raise
    return placement


def _group(workers: list[Request], selectors: list[dict[str, str]]) -> PlacementGroup:
    return placement_group([r.amounts for r in workers], "PACK", bundle_label_selector=selectors)


def _waiting(current: Plan, waited: float, wait_s: float) -> str:
    has = ", ".join(f"{total:g} {name} ({free:g} free)" for name, (total, free) in _sums(current.nodes).items())
    lacks = next(iter(current.unmet.values()), "room that is in use now")
    return f"waiting {waited:.0f} of {wait_s:.0f} s for {len(current.requests)} workers; cluster: {has}; lacks: {lacks}"


def _sums(nodes: tuple[Node, ...]) -> dict[str, tuple[float, float]]:
    return {name: (sum(n.total.get(name, 0) for n in nodes), sum(n.free.get(name, 0) for n in nodes))
            for name in ("CPU", "GPU")}  # fmt: skip
