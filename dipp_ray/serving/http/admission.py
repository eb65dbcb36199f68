"""How many calls one caller may have open, decided from a request's header alone."""

import time
from collections import Counter
from contextlib import contextmanager

from dipp_ray.serving.contract.failures import TrainerFull

RETRY_S = 1.0  # what one who is refused is told to wait


class Admission:
    """Calls that are open, by caller; and callers who were told to wait."""

    def __init__(self):
        self._open: Counter[str] = Counter()
        self._held: dict[str, float] = {}  # until when nothing of a caller is taken

    @contextmanager
    def call(self, who: str, most: int):
        """A call of `who` while it is open. Raises TrainerFull beyond `most` of them, and where `hold` says so."""
        if self._held and self._held.get(who, 0.0) <= time.monotonic():
            self._held.pop(who, None)
        if who in self._held:
            raise TrainerFull(f"{who} was told to try again later, and did not wait", RETRY_S)
        if self._open[who] >= most:
            raise TrainerFull(
                f"{who} has {self._open[who]} calls open of at most {most}: send fewer at a time", RETRY_S
            )
        self._open[who] += 1
        try:
            yield
        finally:
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]

    def hold(self, who: str) -> None:
        """Take nothing more of `who` for RETRY_S seconds: the queue behind has no room for it."""
        self._held[who] = time.monotonic() + RETRY_S
