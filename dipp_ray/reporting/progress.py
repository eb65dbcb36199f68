"""The progress of a run: one live line on a terminal, plain lines in a pipe; and durations and numbers in words."""

import math
import sys

import rich
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dipp_ray.reporting.pace import Pace, Remaining

PLAIN_EVERY = 2.0  # shortest time between two plain lines, seconds
SHOWN = (
    ("reward", "reward"),
    ("score_gap", "score gap"),
    ("grad_norm/generator", "grad"),
    ("grad_norm/score", "score grad"),
)


class ProgressLine:
    """The run's progress: step, images/s, time left, reward, held-out reward, score gap, gradient norms.

    with ProgressLine(total_steps=400, start_step=0, label="align") as progress:
        progress.update(1, {"reward": 6.9, "images_per_second": 31.0})

    `start_step` is the number of steps already done (after a resume). On a terminal it is one live line; otherwise
    plain text, one line at the first step, at most one every two seconds, and one at the end.
    """

    def __init__(self, total_steps: int, start_step: int = 0, label: str = ""):
        self.total, self.step, self.label = total_steps, start_step, label
        self._values: dict[str, float | None] = {}
        self._looked: dict[str, int] = {}  # the step at which each held-out reward was measured
        self._remaining = Remaining(start_step)
        self._live: Live | None = None
        self._printed_step: int | None = None
        self._pace = Pace(PLAIN_EVERY, first_s=0.0)

    def __enter__(self) -> "ProgressLine":
        self._remaining = Remaining(self.step)
        if on_terminal():
            self._live = Live(get_renderable=self._render, console=rich.get_console(), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._live:
            self._live.stop()
        elif self._printed_step is not None and self._printed_step != self.step:
            self._print()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show that `step` steps are done. `values`: a metrics record; a key left out keeps its last value."""
        self.step = step
        self._values |= values
        self._looked |= {key: step for key in values if key.startswith("held_out/")}
        self._remaining.at(step)
        if not self._live and (self._pace.due() or step >= self.total):
            self._print()

    def say(self, text: str) -> None:
        """Print `text` above the line."""
        if self._live:
            self._live.console.print(Text(text))
        else:
            print(text, flush=True)

    def _print(self) -> None:
        print(f"{self.label} {self.step}/{self.total} {self._details()}".strip(), flush=True)
        self._printed_step = self.step

    def _details(self) -> str:
        values = self._values
        parts = []
        if values.get("images_per_second") is not None:
            parts.append(f"{number(values['images_per_second'])} images/s")
        if (left := self._seconds_left()) is not None:
            parts.append(f"{duration(left)} left")
        shown = [(key, name) for key, name in SHOWN if key in values]
        now = [f"{name} {number(values[key])}" for key, name in shown]
        held_out = [
            f"held-out {key.partition('/')[2]} {number(values[key])} at step {step}"
            for key, step in self._looked.items()
        ]
        first = len([key for key, _ in shown if key == "reward"])
        parts += [*now[:first], *held_out, *now[first:]]
        return "· " + " · ".join(parts) if parts else ""

    def _seconds_left(self) -> float | None:
        return self._remaining.seconds(self.total - self.step) if self.step < self.total else None

    def _render(self) -> Table:
        line = Table.grid(padding=(0, 1))
        for _ in range(3):
            line.add_column(no_wrap=True)
        line.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=max(self.total, 1), completed=self.step, width=20)
        line.add_row(Text(self.label, "bold"), bar, f"{self.step}/{self.total}", Text(self._details()))
        return line


def duration(seconds: float) -> str:
    """'12 s', '2:05 min' or '1:02:05 h'."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}:{seconds:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{seconds:02} h"


def number(value: float | None) -> str:
    """Three significant digits, '12,300' from a thousand on; 'not finite' for null, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    if abs(value) >= 1e7 or abs(value) < 1e-3:
        return f"{value:.2e}".replace("-", "\N{MINUS SIGN}", 1) if value < 0 else f"{value:.2e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def on_terminal() -> bool:
    return sys.stdout.isatty() and not rich.get_console().is_dumb_terminal
