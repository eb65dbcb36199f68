"""Saying how far something is, now and then: not at every step, and not in silence."""

import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise


class Pace:
    """Seconds since it began, and whether it is time to say so: after `first_s` seconds, then every `every_s`."""

    def __init__(self, every_s: float, first_s: float | None = None):
        self.every_s = every_s
        self.began = time.monotonic()
        self.next = self.began + (every_s if first_s is None else first_s)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def due(self) -> bool:
        """Whether it is time; asking says that it will be said."""
        now = time.monotonic()
        if now < self.next:
            return False
        self.next = now + self.every_s
        return True


class Remaining:
    """How long what is left will take, by the pace of late: of the last 50 intervals the slowest is left out, for a
    stall is no pace. `done` are done already; two points that are kept lie at least `apart_s` seconds apart."""

    KEPT = 51

    def __init__(self, done: int = 0, apart_s: float = 0.0):
        self.apart_s = apart_s
        self.points = deque([(time.monotonic(), done)], maxlen=self.KEPT)

    def at(self, done: int) -> None:
        """So much is done now."""
        now, (then, before) = time.monotonic(), self.points[-1]
        if done > before and now - then >= self.apart_s:
            self.points.append((now, done))

    def seconds(self, left: int) -> float | None:
        """The time that `left` more will take, or None where nothing is known yet."""
        paces = sorted(
            ((now - then) / (done - before), done - before) for (then, before), (now, done) in pairwise(self.points)
        )
        kept = paces[:-1] or paces
        if not kept:
            return None
        return left * sum(pace * count for pace, count in kept) / sum(count for _, count in kept)


class Ticker:
    """A line every few seconds: what, how far, elapsed and remaining time."""

    EVERY_S = 5.0
    APART_S = 0.5  # of two points that the time left is told by

    def __init__(self, say: Callable[[str], None], what: str, total: int):
        self.say, self.what, self.total = say, what, total
        self.pace, self.remaining = Pace(self.EVERY_S), Remaining(apart_s=self.APART_S)

    def tick(self, done: int, note: str = "") -> None:
        """`done` of `total` are done; `note` is added to the line."""
        self.remaining.at(done)
        if not self.pace.due():
            return
        line = f"{self.what} {done:,}/{self.total:,}, {self.pace.elapsed:.0f} s"
        if (left := self.remaining.seconds(self.total - done)) is not None:
            line += f", {left:.0f} s left"
        self.say(f"{line}, {note}" if note else line)
