"""The table of chaos: read, and written as a page."""

import json
from pathlib import Path


def read_table(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def as_page(table: list[dict]) -> str:
    lines = [
        "# Faults, and what became of the runs",
        "",
        "Made by `python jobs/chaos.py --seed N`: one row a fault, each on a cluster of four nodes on one machine,",
        "two generator and two score model ranks, memory_every 2, a checkpoint every 20 of 40 steps. *difference* is",
        "that of the final weights from the undisturbed run's, 0 meaning equal to the bit; where a node went, sizes",
        "changed.",
        "",
        "| cell | seed | difference | recoveries | steps lost | s to the next finished step |",
        "|---|---|---|---|---|---|",
    ]
    for entry in sorted(table, key=lambda entry: (entry["cell"], entry["seed"])):
        lines.append(
            f"| {entry['cell']} | {entry['seed']} | {entry['difference']:.1g} | {entry['recoveries']} "
            f"| {entry['steps_lost']} | {entry['seconds_to_next_step']:.1f} |"
        )
    return "\n".join([*lines, ""])
