"""The sample grids of a run in its report: first and last, a few between them, the rest as links."""

from pathlib import Path

from dipp_ray.reporting.thumbnails import image_link

BETWEEN = 8  # grids in the page between the first and the last


def samples_section(folder: Path, config: dict) -> str:
    """First and last grid side by side, at most BETWEEN of those between folded; the others are linked."""
    grids = sorted((folder / "samples").glob("step_*.png"), key=step_of)
    if not grids:
        return ""
    scale = (config.get("objective") or {}).get("reward_scale") or 0
    ends = [grids[0]] if len(grids) == 1 else [grids[0], grids[-1]]
    names = ["Before", "After"] if scale else ["At the start", "At the end"]
    shown = "".join(_grid(grid, name) for grid, name in zip(ends, names, strict=False))
    return (
        '<section><h2>Samples</h2><p class="soft">One step each; the same noises and prompts in every grid. Each links '
        f'to the whole picture in samples/.</p><div class="pair">{shown}</div>{_between(grids[1:-1])}</section>'
    )


def spread_over(items: list[Path], count: int) -> list[Path]:
    """At most `count` of them, evenly spread, away from both ends."""
    if len(items) <= count:
        return items
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def step_of(path: Path) -> int:
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdigit() else 0


def _between(grids: list[Path]) -> str:
    if not grids:
        return ""
    picked = spread_over(grids, BETWEEN)
    left = [grid for grid in grids if grid not in picked]
    links = ", ".join(f'<a href="samples/{grid.name}">{step_of(grid):,}</a>' for grid in left)
    others = f'<p class="soft">As files alone, of steps {links}.</p>' if left else ""
    shown = f"{len(picked)} of {len(grids)}" if left else f"{len(grids)}"
    pictures = "".join(_grid(grid, "") for grid in picked)
    return f'<details><summary>{shown} between them</summary><div class="pair">{pictures}</div>{others}</details>'


def _grid(path: Path, name: str) -> str:
    step = f"step {step_of(path):,}"
    caption = f"<b>{name}</b>, {step}" if name else step.capitalize()
    picture = image_link(path, f"samples/{path.name}", f"Grid of samples at {step}")
    return f'<figure class="samples"><figcaption>{caption}</figcaption>{picture}</figure>'
