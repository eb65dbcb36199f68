"""Curves as inline SVG: axes with ticks, light smoothing with the raw line behind, gaps where a value is not finite."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dipp_ray.reporting.axes import BOTTOM, HEIGHT, TOP, WIDTH, Axes
from dipp_ray.reporting.progress import number

SMOOTH_FROM = 24  # points; shorter series are drawn as they are, with their points
WIDEST = 600  # points of a drawn line; longer ones keep each bucket's smallest and largest
LOG_FROM = 100.0  # largest by smallest value of a chart, from which its axis is logarithmic
APART = 20.0  # ratio of two lines' typical sizes, from which each has a chart of its own
MOST_CROSSES = 100  # of values that are not finite, in a line


@dataclass(frozen=True)
class Series:
    """One line: its name and its points (step, value); value None is not finite."""

    name: str
    points: list[tuple[int, float | None]]

    @property
    def finite(self) -> list[tuple[int, float]]:
        return [(step, value) for step, value in self.points if value is not None]


def series(records: list[dict], key: str, name: str) -> Series:
    """The values of `key` in the metrics records that have it."""
    return Series(name, [(record["step"], record[key]) for record in records if key in record])


def smooth(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Centred moving average over a fifteenth of the points: it does not lag behind them."""
    reach = max(1, len(points) // 30)
    values = [value for _, value in points]
    total = [0.0]
    for value in values:
        total.append(total[-1] + value)
    smoothed = []
    for index, (step, _) in enumerate(points):
        low, high = max(0, index - reach), min(len(points), index + reach + 1)
        smoothed.append((step, (total[high] - total[low]) / (high - low)))
    return smoothed


def panels(title: str, unit: str, lines: list[Series], marks: Sequence[tuple[int, str]] = ()) -> str:
    """`chart`, so that each line is seen beside the others: on a logarithmic axis where values above 0 differ much,
    and a chart for each line where lines of either sign do."""
    values = [value for line in lines for _, value in line.finite]
    if values and min(values) > 0 and max(values) >= LOG_FROM * min(values):
        return chart(title, f"{unit}, log scale".lstrip(", "), lines, marks, log=True)
    sizes = [size for line in lines if (size := _typical(line))]
    if len(sizes) > 1 and max(sizes) >= APART * min(sizes):
        return "".join(chart(f"{title}, {line.name}", unit, [line], marks) for line in lines)
    return chart(title, unit, lines, marks)


def _typical(line: Series) -> float:
    """The median of its values' sizes; 0 without values."""
    sizes = sorted(abs(value) for _, value in line.finite)
    return sizes[len(sizes) // 2] if sizes else 0.0


def chart(title: str, unit: str, lines: list[Series], marks: Sequence[tuple[int, str]] = (), log: bool = False) -> str:
    """A <figure> with the curves of `lines` over the steps and `marks` (step, label); '' without points.

    `title` and `unit` are plain text. log: of values above 0, on a logarithmic axis. The picture is described in words
    for those who do not see it.
    """
    lines = [line for line in lines if line.points]
    values = [value for line in lines for _, value in line.finite]
    if not lines:
        return ""
    steps = [step for line in lines for step, _ in line.points]
    axes = Axes(steps, values, log)
    body = [axes.svg()]
    for step, label in marks:
        if axes.first <= step <= axes.last:
            body.append(_mark(axes, step, label))
    for index, line in enumerate(lines):
        body.append(_line(axes, line, f"s{index % 4}"))
    described = "; ".join(_in_words(line) for line in lines)
    legend = "".join(
        f'<span class="key s{index % 4}"><svg viewBox="0 0 18 6" aria-hidden="true"><path d="M0 3H18"/></svg>'
        f"{escape(line.name)}</span>"
        for index, line in enumerate(lines)
        if len(lines) > 1
    )
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b> <span class="unit">{escape(unit)}</span>{legend}'
        f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {described}")}">'
        f"{''.join(body)}</svg></figure>"
    )


def _line(axes: Axes, line: Series, style: str) -> str:
    parts = []
    runs = _runs(line.points)
    many = len(line.finite) >= SMOOTH_FROM
    for run in runs:
        if many:
            parts.append(f'<path class="raw {style}" d="{_path(axes, _thinned(run))}"/>')
    for run in runs:
        drawn = _smooth_in(axes, run) if many else run
        parts.append(f'<path class="line {style}" d="{_path(axes, _thinned(drawn))}"/>')
        if not many:
            parts += [f'<circle class="{style}" cx="{axes.x(s):.1f}" cy="{axes.y(v):.1f}" r="2.6"/>' for s, v in run]
    bad = [step for step, value in line.points if value is None]
    for step in bad[:: max(1, math.ceil(len(bad) / MOST_CROSSES))]:
        x, y = axes.x(step), HEIGHT - BOTTOM
        parts.append(
            f'<path class="bad" d="M{x - 4:.1f} {y - 4}l8 8m0 -8l-8 8"><title>not finite, step {step}</title></path>'
        )
    return "".join(parts)


def _smooth_in(axes: Axes, run: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Smoothed as it is drawn: a spike on a logarithmic axis is one among its neighbours there too."""
    if not axes.log:
        return smooth(run)
    return [(step, 10.0**value) for step, value in smooth([(step, math.log10(value)) for step, value in run])]


def _mark(axes: Axes, step: int, label: str) -> str:
    x = axes.x(step)
    right = x > WIDTH * 0.75
    text_x, anchor = (x - 5, "end") if right else (x + 5, "start")
    return (
        f'<path class="mark" d="M{x:.1f} {TOP - 4}V{HEIGHT - BOTTOM}"/>'
        f'<text class="mark" x="{text_x:.1f}" y="{TOP + 5}" text-anchor="{anchor}">{escape(label)}</text>'
    )


def _runs(points: list[tuple[int, float | None]]) -> list[list[tuple[int, float]]]:
    """The stretches of finite values."""
    runs: list[list[tuple[int, float]]] = [[]]
    for step, value in points:
        if value is None:
            runs.append([])
        else:
            runs[-1].append((step, value))
    return [run for run in runs if run]


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    if len(points) <= WIDEST:
        return points
    size = math.ceil(2 * len(points) / WIDEST)
    kept = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        kept += sorted({min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])})
    return kept


def _path(axes: Axes, points: list[tuple[int, float]]) -> str:
    return "M" + "L".join(f"{axes.x(step):.1f} {axes.y(value):.1f}" for step, value in points)


def _in_words(line: Series) -> str:
    if not line.finite:
        return f"{line.name} is never finite"
    (first, start), (last, end) = line.finite[0], line.finite[-1]
    if first == last:
        return f"{line.name} {number(start)} at step {first}"
    return f"{line.name} from {number(start)} at step {first} to {number(end)} at step {last}"
