"""Locks between the processes of one machine, on a file that may stay: the system drops them when a process dies."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dipp_ray.errors import UserError


class Held:
    """A lock file that this process holds."""

    def __init__(self, path: Path, lock: IO):
        self.path, self.lock = path, lock

    @property
    def stays(self) -> bool:
        """Whether `path` still is that file: its folder may have been removed, and made anew by somebody else."""
        return is_same(self.path, self.lock)


@contextmanager
def alone(path: Path, refusal: str) -> Iterator[Held]:
    """Hold the lock file `path`. Raises UserError(refusal) where another process holds it."""
    with open(path, "w") as lock:
        if not _taken(lock):
            raise UserError(refusal)
        yield Held(path, lock)


def is_same(path: Path, file: IO) -> bool:
    """Whether `path` names the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except (FileNotFoundError, NotADirectoryError):
        return False


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
