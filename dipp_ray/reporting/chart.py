"""Curves as inline SVG: axes with ticks, light smoothing with the raw line behind, gaps where a value is not finite."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dipp_ray.reporting.progress import number

WIDTH, HEIGHT = 420, 236
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 14, 34
SMOOTH_FROM = 24  # points; shorter series are drawn as they are, with their points
WIDEST = 600  # points of a drawn line; longer ones keep each bucket's smallest and largest


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


def chart(title: str, unit: str, lines: list[Series], marks: Sequence[tuple[int, str]] = ()) -> str:
    """A <figure> with the curves of `lines` over the steps and `marks` (step, label); '' without points.

    `title` and `unit` are plain text. The picture is described in words for those who do not see it.
    """
    lines = [line for line in lines if line.points]
    values = [value for line in lines for _, value in line.finite]
    if not lines:
        return ""
    steps = [step for line in lines for step, _ in line.points]
    axes = _Axes(min(steps), max(steps), *_padded(values))
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


class _Axes:
    """Maps (step, value) to the picture and draws the frame."""

    def __init__(self, first: int, last: int, low: float, high: float):
        self.first, self.last, self.low, self.high = first, last, low, high

    def x(self, step: float) -> float:
        span = self.last - self.first
        part = (step - self.first) / span if span else 0.5
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def svg(self) -> str:
        parts = []
        values = ticks(self.low, self.high, 5)
        for tick, label in zip(values, tick_labels(values), strict=True):
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        base = HEIGHT - BOTTOM
        parts.append(f'<path class="axis" d="M{LEFT} {base}H{WIDTH - RIGHT}"/>')
        for tick in ticks(self.first, self.last, 5, whole=True):
            x = self.x(tick)
            anchor = "end" if x > WIDTH - RIGHT - 14 else "middle"
            parts.append(f'<path class="axis" d="M{x:.1f} {base}v4"/>')
            parts.append(f'<text x="{x:.1f}" y="{base + 17}" text-anchor="{anchor}">{tick:,.0f}</text>')
        parts.append(
            f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">step</text>'
        )
        return "".join(parts)


def ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) between `low` and `high`, about `about` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        width = max(1, math.ceil(width))
    first = math.ceil(low / width - 1e-9)
    last = math.floor(high / width + 1e-9)
    return [index * width for index in range(first, last + 1)]


def tick_labels(values: list[float]) -> list[str]:
    """`values` with the same decimals, or with one power of ten from 100,000 on and below 0.01."""
    largest = max(map(abs, values)) or 1.0
    if not 1e-2 <= largest < 1e5:
        power = math.floor(math.log10(largest) + 1e-9)
        labels = [f"{value / 10.0**power:g}e{power}" if value else "0" for value in values]
    else:
        decimals = max(len(f"{value:.6g}".partition(".")[2]) for value in values)
        labels = [f"{value:,.{decimals}f}" for value in values]
    return [label.replace("-", "\N{MINUS SIGN}") for label in labels]


def _padded(values: list[float]) -> tuple[float, float]:
    """Low and high end of the value axis: a little air around the values, never of no height."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 0.35 * high else low - air), high + air


def _line(axes: _Axes, line: Series, style: str) -> str:
    parts = []
    runs = _runs(line.points)
    many = len(line.finite) >= SMOOTH_FROM
    for run in runs:
        if many:
            parts.append(f'<path class="raw {style}" d="{_path(axes, _thinned(run))}"/>')
    for run in runs:
        drawn = smooth(run) if many else run
        parts.append(f'<path class="line {style}" d="{_path(axes, _thinned(drawn))}"/>')
        if not many:
            parts += [f'<circle class="{style}" cx="{axes.x(s):.1f}" cy="{axes.y(v):.1f}" r="2.6"/>' for s, v in run]
    for step, value in line.points:
        if value is None:
            x, y = axes.x(step), HEIGHT - BOTTOM
            parts.append(
                f'<path class="bad" d="M{x - 4:.1f} {y - 4}l8 8m0 -8l-8 8">'
                f"<title>not finite, step {step}</title></path>"
            )
    return "".join(parts)


def _mark(axes: _Axes, step: int, label: str) -> str:
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


def _path(axes: _Axes, points: list[tuple[int, float]]) -> str:
    return "M" + "L".join(f"{axes.x(step):.1f} {axes.y(value):.1f}" for step, value in points)


def _in_words(line: Series) -> str:
    if not line.finite:
        return f"{line.name} is never finite"
    (first, start), (last, end) = line.finite[0], line.finite[-1]
    if first == last:
        return f"{line.name} {number(start)} at step {first}"
    return f"{line.name} from {number(start)} at step {first} to {number(end)} at step {last}"
