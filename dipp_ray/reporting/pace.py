"""Saying how far something is, now and then: not at every step, and not in silence."""

import time
from collections.abc import Callable


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


class Ticker:
    """A line every few seconds: what, how far, elapsed and remaining time."""

    EVERY_S = 5.0

    def __init__(self, say: Callable[[str], None], what: str, total: int):
        self.say, self.what, self.total = say, what, total
        self.pace = Pace(self.EVERY_S)

    def tick(self, done: int, note: str = "") -> None:
        """`done` of `total` are done; `note` is added to the line."""
        if not self.pace.due():
            return
        elapsed = self.pace.elapsed
        left = elapsed / done * (self.total - done)
        line = f"{self.what} {done:,}/{self.total:,}, {elapsed:.0f} s, {left:.0f} s left"
        self.say(f"{line}, {note}" if note else line)
