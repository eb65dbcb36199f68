"""The axes of a chart: from (step, value) to the picture, linear or logarithmic, with round ticks."""

import math

WIDTH, HEIGHT = 420, 236
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 14, 34
MOST_DECADES = 6  # labelled; of more, every second, third ...


class Axes:
    """Maps (step, value) to the picture and draws the frame. log: all values are above 0."""

    def __init__(self, steps: list[int], values: list[float], log: bool = False):
        self.first, self.last, self.log = min(steps), max(steps), log
        self.low, self.high = _padded([self.scaled(value) for value in values], log)

    def scaled(self, value: float) -> float:
        """What the picture is linear in."""
        return math.log10(value) if self.log else value

    def x(self, step: float) -> float:
        span = self.last - self.first
        part = (step - self.first) / span if span else 0.5
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        part = (self.scaled(value) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

    def svg(self) -> str:
        parts = []
        values = decades(self.low, self.high) if self.log else ticks(self.low, self.high, 5)
        labels = [power_label(value) for value in values] if self.log else tick_labels(values)
        for tick, label in zip(values, labels, strict=True):
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


def decades(low: float, high: float) -> list[float]:
    """Powers of ten between 10**low and 10**high."""
    powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    return [10.0**power for power in powers[:: max(1, math.ceil(len(powers) / MOST_DECADES))]]


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


def power_label(value: float) -> str:
    """A power of ten: '0.01', '1,000', '1e6'."""
    power = round(math.log10(value))
    return f"{value:,g}" if -3 <= power <= 5 else f"1e{power}".replace("-", "\N{MINUS SIGN}")


def _padded(values: list[float], log: bool) -> tuple[float, float]:
    """Low and high end of the value axis: a little air around the values, never of no height."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if not log and 0 <= low < 0.35 * high else low - air), high + air
