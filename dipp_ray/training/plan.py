"""Which worker of which role runs on which node: a pure function of what is asked for and what the nodes have."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table

from dipp_ray.config import RunConfig
from dipp_ray.errors import UserError
from dipp_ray.role_settings import Between
from dipp_ray.training.placement_table import as_text, plan_table
from dipp_ray.training.sizes import Sizes

GROUPS = ("generator", "score")  # ranks of one torch.distributed world: never two on one GPU
SERVED = ("reward",)  # placed by Ray Serve
ACCELERATOR = "accelerator_type:"  # prefix of the resource by which Ray marks a node's kind of GPU
ACCELERATOR_SHARE = 0.001  # as Ray itself asks of that resource for one actor


@dataclass(frozen=True)
class Request:
    """What one worker of a role asks for. A label's value may be a Ray selector: `a`, `!a`, `in(a, b)`, `!in(a, b)`."""

    role: str
    index: int
    cpus: float = 0.0
    gpus: float = 0.0
    accelerator: str | None = None
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    resources: dict[str, float] = field(default_factory=dict, hash=False)

    @property
    def amounts(self) -> dict[str, float]:
        """Everything asked for, by Ray's resource names; nothing that is 0."""
        kind = {ACCELERATOR + self.accelerator: ACCELERATOR_SHARE} if self.accelerator else {}
        amounts = {"CPU": self.cpus, "GPU": self.gpus, **self.resources, **kind}
        return {name: amount for name, amount in amounts.items() if amount > 0}


@dataclass(frozen=True)
class Node:
    """A node: its total resources by Ray's names, how much of them is taken, its labels."""

    id: str
    name: str
    total: dict[str, float] = field(hash=False)
    used: dict[str, float] = field(default_factory=dict, hash=False)
    labels: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def free(self) -> dict[str, float]:
        return {name: amount - self.used.get(name, 0.0) for name, amount in self.total.items()}


@dataclass(frozen=True)
class Plan:
    """`where` maps (role, index) to a node, and `gpus` to the numbers of those of its free GPUs that it is planned on;
    `unmet` maps the others to the reason, one line each.

    `possible`: the cluster can hold all of it. `waits`: only once what is taken now is given back.
    """

    requests: tuple[Request, ...]
    nodes: tuple[Node, ...]
    where: dict[tuple[str, int], Node] = field(hash=False)
    unmet: dict[tuple[str, int], str] = field(hash=False)
    waits: bool = False
    gpus: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict, hash=False)

    @property
    def possible(self) -> bool:
        return not self.unmet

    def shared_gpus(self) -> list[tuple[Node, list[Request]]]:
        """(its node, who is planned on it) of each GPU that has several."""
        on: dict[tuple[str, int], list[Request]] = {}
        for request in self.requests:
            key = (request.role, request.index)
            for gpu in self.gpus.get(key, ()):
                on.setdefault((self.where[key].id, gpu), []).append(request)
        nodes = {node.id: node for node in self.nodes}
        return [(nodes[node], on[node, gpu]) for node, gpu in sorted(on) if len(on[node, gpu]) > 1]

    def table(self) -> Table:
        """What each role asks for, where it goes, and what the cluster has."""
        return plan_table(self)

    def require(self) -> "Plan":
        """Itself. Raises UserError with the table when the plan is impossible."""
        if not self.possible:
            raise UserError(f"the cluster cannot hold this run: ask for less, or add nodes\n{as_text(self.table())}")
        return self


def requests(config: RunConfig, sizes: Sizes) -> list[Request]:
    """One request for each worker of each role, in a fixed order.

    The reward has `reward.replicas` workers a term, the fewest that it may have, and as many that decode for all of
    them where `reward.decode_once` says so; none where it has no terms or a shared service is used.
    """
    replicas = config.reward.replicas
    deployments = len(config.reward.terms) + config.reward.decode_once
    served = deployments * (replicas.min if isinstance(replicas, Between) else replicas)
    workers = {
        "generator": sizes.generator,
        "score": sizes.score,
        "teacher": sizes.teacher,
        "reward": 0 if config.reward.shared else served,
        "text": 1,
    }
    found = []
    for role, count in workers.items():
        asked = getattr(config.roles, role)
        one = (asked.cpus, asked.gpus, asked.accelerator, asked.labels, asked.resources)
        found += [Request(role, index, *one) for index in range(count)]
    return found


def group_requests(config: RunConfig, sizes: Sizes) -> list[Request]:
    """Those of the ranks alone."""
    return [request for request in requests(config, sizes) if request.role in GROUPS]


def best_plan(choices: Sequence[list[Request]], nodes: list[Node]) -> Plan:
    """The plan of the first choice that fits into what is free now; where none does, of the first that the cluster can
    hold at all, and where there is none either, of the last."""
    plans = [plan(choice, nodes) for choice in choices]
    now = [found for found in plans if found.possible and not found.waits]
    return next(iter([*now, *(found for found in plans if found.possible), plans[-1]]))


def plan(requests: list[Request], nodes: list[Node]) -> Plan:
    """Assign each request to a node: the hardest to place first, each on the first node that fits.

    Deterministic, and a heuristic: of several roles that could swap nodes, labels say which goes where. It fits into
    what is free now where that can be; otherwise into the totals, and `waits` is true.

    Two ranks of a group are kept on different GPUs here, but within a node Ray itself picks the GPU: fractions up to a
    half could still meet, which is why the configuration refuses them for groups of more than one.
    """
    nodes = sorted(nodes, key=lambda node: (node.name, node.id))
    where, gpus, unmet = _assign(requests, nodes, {node.id: node.free for node in nodes})
    if not unmet:
        return Plan(tuple(requests), tuple(nodes), where, {}, gpus=gpus)
    where, gpus, unmet = _assign(requests, nodes, {node.id: node.total for node in nodes})
    return Plan(tuple(requests), tuple(nodes), where, unmet, waits=not unmet, gpus=gpus)


def matches(labels: dict[str, str], selectors: dict[str, str]) -> bool:
    """Whether a node's labels satisfy all selectors, as Ray reads them."""
    for key, selector in selectors.items():
        negated, value = selector.startswith("!"), selector.removeprefix("!")
        listed = re.fullmatch(r"in\((.*)\)", value)
        values = [part.strip() for part in listed[1].split(",")] if listed else [value]
        if (labels.get(key) in values) == negated:
            return False
    return True


def compete(one: Request, other: Request, nodes: Sequence[Node]) -> bool:
    """Whether some node could hold either of them: then one may take the room that the other waits for."""
    return any(_fits(one, node) and _fits(other, node) for node in nodes)


class _Room:
    """What is left of one node while a plan is made; its GPUs one by one."""

    def __init__(self, amounts: dict[str, float]):
        self.left = dict(amounts)
        gpus = amounts.get("GPU", 0.0)
        # Ray does not say which GPU a used fraction lies on: the fullest packing is assumed.
        self.gpus = [1.0] * int(gpus) + ([gpus % 1] if gpus % 1 > 1e-6 else [])
        self.groups: list[set[str]] = [set() for _ in self.gpus]

    def place(self, request: Request) -> tuple[int, ...] | None:
        """Take the room for `request` and say on which of the GPUs, or leave all as it is and return None."""
        if any(self.left.get(name, 0.0) < amount - 1e-6 for name, amount in request.amounts.items()):
            return None
        exclusive = {request.role} & set(GROUPS)
        count, share = (int(request.gpus), 1.0) if request.gpus >= 1 else (int(request.gpus > 0), request.gpus)
        usable = [i for i, left in enumerate(self.gpus) if left >= share - 1e-6 and not exclusive & self.groups[i]]
        if len(usable) < count:
            return None
        for i in usable[:count]:
            self.gpus[i] -= share
            self.groups[i] |= exclusive
        for name, amount in request.amounts.items():
            self.left[name] -= amount
        return tuple(usable[:count])


def _fits(request: Request, node: Node) -> bool:
    """Whether the node could hold it, were it empty."""
    return matches(node.labels, request.labels) and _Room(node.total).place(request) is not None


def _assign(requests: list[Request], nodes: list[Node], capacity: dict[str, dict[str, float]]):
    fits = {request: [node for node in nodes if _fits(request, node)] for request in requests}
    rooms = {node.id: _Room(capacity[node.id]) for node in nodes}
    where, gpus, unmet = {}, {}, {}
    for request in sorted(requests, key=lambda r: (len(fits[r]), -r.gpus, -r.cpus)):
        key = (request.role, request.index)
        # As Ray does, keep what needs no GPU off the nodes that have some.
        candidates = sorted(fits[request], key=lambda n: request.gpus == 0 and n.total.get("GPU", 0) > 0)
        for node in candidates:
            if (taken := rooms[node.id].place(request)) is not None:
                where[key], gpus[key] = node, taken
                break
        else:
            unmet[key] = _reason(request, nodes, fits[request])
    order = [(request.role, request.index) for request in requests]
    return {k: where[k] for k in order if k in where}, gpus, {k: unmet[k] for k in order if k in unmet}


def _reason(request: Request, nodes: list[Node], fits: list[Node]) -> str:
    who = f"{request.role} {request.index}"
    if not nodes:
        return f"{who}: the cluster has no nodes"
    if fits:
        names = ", ".join(node.name for node in fits)
        return f"{who}: {names} could hold it, but the other workers leave too little there"
    labelled = [node for node in nodes if matches(node.labels, request.labels)]
    if not labelled:
        return f"{who}: no node has the labels {', '.join(f'{k}={v}' for k, v in request.labels.items())}"
    for name, amount in request.amounts.items():
        most = max(node.total.get(name, 0.0) for node in labelled)
        if most < amount:
            having = f"the largest fitting node has {most:g}" if most else "no fitting node has any"
            asks = f"GPU kind {request.accelerator}" if name.startswith(ACCELERATOR) else f"{name} {amount:g}"
            return f"{who}: asks for {asks}, and {having}"
    return f"{who}: no single node has all that it asks for together"
