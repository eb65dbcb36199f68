"""A placement plan as a table: for the terminal, and as text for an error message."""

from collections import defaultdict
from io import StringIO

from rich.console import Console
from rich.table import Table

OWN = ("node:", "accelerator_type:", "memory", "object_store_memory")  # resources that Ray adds to every node
TEXT_WIDTH = 118  # columns


def plan_table(plan) -> Table:
    """Roles (what one worker asks for, where the workers go), then nodes (total, labels, free), then what is unmet."""
    title = "Placement" + ("" if plan.possible else ": impossible") + (": waits for room" if plan.waits else "")
    table = Table(title=title, title_justify="left")
    for column in ("who", "asks for, has", "goes to, free"):
        table.add_column(column, overflow="fold")
    for role in dict.fromkeys(request.role for request in plan.requests):
        workers = [request for request in plan.requests if request.role == role]
        goes: defaultdict[str, int] = defaultdict(int)
        for request in workers:
            node = plan.where.get((role, request.index))
            goes[node.name if node else "nowhere"] += 1
        where = ", ".join(f"{count} x {name}" if len(workers) > 1 else name for name, count in goes.items())
        served = " (by Ray Serve)" if role == "reward" else ""
        table.add_row(f"{len(workers)} x {role}{served}", describe_request(workers[0]), where)
    table.add_section()
    for node in plan.nodes:
        table.add_row(f"node {node.name}", describe_node(node), amounts(node.free) or "nothing")
    if not plan.nodes:
        table.add_row("no nodes", "", "")
    if plan.unmet:
        table.caption = "\n".join(f"unmet: {reason}" for reason in plan.unmet.values())
        table.caption_justify = "left"
    return table


def describe_request(request) -> str:
    """One worker's request, such as `CPU 4, GPU 0.5, kind H100; role=teacher`."""
    parts = [amounts(request.amounts), f"kind {request.accelerator}" if request.accelerator else ""]
    return "; ".join(part for part in (", ".join(filter(None, parts)) or "nothing", labels(request.labels)) if part)


def describe_node(node) -> str:
    """A node's total, its kinds of GPU, its labels."""
    kinds = [name.removeprefix("accelerator_type:") for name in node.total if name.startswith("accelerator_type:")]
    parts = [amounts(node.total), *(f"kind {kind}" for kind in kinds)]
    return "; ".join(part for part in (", ".join(filter(None, parts)), labels(node.labels)) if part)


def amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in resources.items() if not name.startswith(OWN) and value)


def labels(pairs: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in pairs.items() if not key.startswith("ray.io/"))


def as_text(table: Table) -> str:
    """The table as plain text, TEXT_WIDTH columns wide at most."""
    text = StringIO()
    console = Console(file=text, width=TEXT_WIDTH, color_system=None, force_terminal=False)
    console.print(table)
    return text.getvalue().rstrip()
