"""The table of chaos: read, and written as a page."""

import json
import statistics
from pathlib import Path

HEAD = "## Figures"
PARTS = ("seen", "room", "meet", "load", "step")


def read_table(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_good(row: dict) -> bool:
    difference = row["difference"]
    if row["ended"] or row["left"] or row.get("left_stopped") or row.get("fault") or row.get("seconds") is None:
        return False
    if row["bound"]:
        return difference["x0"] <= row["bound"] and difference["loss"] <= row["bound"]
    return difference["weights"] == 0 and difference["different_at"] is None


def newest(table: list[dict]) -> list[dict]:
    """Of each cell at each seed the last good outcome, or the last one."""
    found: dict[tuple, dict] = {}
    for row in table:
        key = row["cell"], row["seed"]
        if row["good"] or not found.get(key, {}).get("good"):
            found[key] = row
    return [found[key] for key in sorted(found)]


def as_page(table: list[dict], page: str) -> str:
    """`page` with its figures replaced; what stands before them is written by hand."""
    rows = newest(table)
    lines = [page.partition(HEAD)[0] + HEAD, "", summary(table), ""]
    lines += [
        "| fault | seed | of run | at step | same to the bit | steps lost | s to the next finished step | of which |",
        "|---|---|---|---|---|---|---|---|",
    ]
    runs = {row["run"]: f"{number + 1}" for number, row in enumerate({row["run"]: row for row in rows}.values())}
    for row in rows:
        parts = ", ".join(
            f"{part} {row['parts'][part]:.1f}"
            for part in PARTS
            if part in row.get("parts", {}) and len(row["parts"]) > 1
        )
        seconds = "not recovered" if row.get("seconds") is None else f"{row['seconds']:.1f}"
        lines.append(
            f"| {row['cell']} | {row['seed']} | {runs[row['run']]} | {row['step']} | {_same(row)} "
            f"| {row['lost'] if 'lost' in row else row['steps_lost']} | {seconds} | {parts} |"
        )
    lines += [
        "",
        "| run | seed | ZeRO | steps | faults | weights | loss | x0 | left behind | s | load |",
        "|---" * 11 + "|",
    ]
    for name, number in runs.items():
        of_run = [row for row in table if row["run"] == name]
        one, faults = of_run[-1], len(of_run)
        zero = one["cell"].rpartition("zero")[2]
        figures = [one["difference"][key] for key in ("weights", "loss", "x0")]
        shown = " | ".join("" if figure is None else f"{figure:.1g}" for figure in figures)
        left = one["ended"] or ", ".join(one["left"]) or "nothing"
        lines.append(
            f"| {number} | {one['seed']} | {zero} | {one['steps']} | {faults} | {shown} | {left} "
            f"| {one['run_seconds']:.0f} | {one['load']} |"
        )
    return "\n".join([*lines, ""])


def summary(table: list[dict]) -> str:
    rows = newest(table)
    recovered = [row for row in rows if row.get("recoveries")]
    seconds = [row["seconds"] for row in recovered if row.get("seconds")]
    others = [row["seconds"] for row in rows if not row.get("recoveries") and row.get("seconds")]
    said = f"{len(rows)} faults, {sum(row['good'] for row in rows)} as they should be"
    if seconds:
        lost = [row["steps_lost"] for row in recovered]
        said += (
            f"; of {len(recovered)} with a recovery: steps lost {statistics.median(lost):g} in the median, {max(lost)} "
            f"at most, seconds to the next finished step {statistics.median(seconds):.1f} and {max(seconds):.1f}"
        )
    if others:
        said += f"; of the {len(others)} others {statistics.median(others):.1f} and {max(others):.1f}"
    return said + "."


def _same(row: dict) -> str:
    if row["ended"]:
        return "the run ended"
    if row["bound"]:
        return "sizes changed"
    return "yes" if row["same_until_next"] and row["difference"]["weights"] == 0 else "no"
