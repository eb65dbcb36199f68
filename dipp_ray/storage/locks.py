"""Locks between the processes of one machine, on a file that may stay: the system drops them when a process dies."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dipp_ray.errors import UserError


@contextmanager
def alone(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path`. Raises UserError(refusal) where another process holds it."""
    with open(path, "w") as lock:
        if not _taken(lock):
            raise UserError(refusal)
        yield


@contextmanager
def in_turn(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`; `on_wait` is called, once, before waiting for another process that holds it."""
    with open(path, "w") as lock:
        if not _taken(lock):
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _taken(lock) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
