"""A rank's way to its checkpoints: its share is copied, and written beside what comes next."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from dipp_ray.storage.files import FileRecord


class Writer:
    """One thread, which writes one share at a time."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[list[FileRecord]] | None = None

    def begin(self, write: Callable[..., list[FileRecord]], state: Callable[[], tuple[Any, ...]]) -> None:
        """Begin `write(*state())`: the state is taken now, when what was begun before has ended."""
        if self.writing:
            wait([self.writing])
        self.writing = self.thread.submit(write, *state())

    def written(self) -> list[FileRecord]:
        """Returns when what was begun is written. Raises what it raised."""
        assert self.writing is not None, "nothing was begun"
        return self.writing.result()
