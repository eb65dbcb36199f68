"""A tracker in a thread of its own, which alone waits for the tracker's server."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLOSE_S = 60.0  # the longest that the end of a run waits for what was not sent yet, seconds


class Behind:
    """What is written is told to the tracker by a thread, in order; the first failure is its last.

    opened: makes the tracker, in the thread. lost(what, error): called there, once.
    """

    def __init__(self, opened: Callable[[], Any], name: str, lost: Callable[[str, Exception], None]):
        self._opened, self._lost = opened, lost
        self._queue: queue.SimpleQueue[tuple[dict, Path | None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._thread.start()

    def write(self, record: dict, grid: Path | None) -> None:
        self._queue.put((record, grid))

    def close(self) -> None:
        """Wait for all that was written to be told. Raises TimeoutError where that takes longer than CLOSE_S."""
        self._queue.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            raise TimeoutError(f"not done after {CLOSE_S:g} s")

    def _work(self) -> None:
        what = "open"
        try:
            tracker = self._opened()
            while (told := self._queue.get()) is not None:
                what = f"write step {told[0]['step']}"
                tracker.write(*told)
            what = "close"
            tracker.close()
        except Exception as error:
            self._lost(what, error)
