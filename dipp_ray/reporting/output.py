"""What is printed never ends a run: closed pipes, full disks, terminals that know few letters."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within, what cannot be written to standard output or error is dropped, and unknown letters become '?'."""
    before = sys.stdout, sys.stderr
    with suppress(ValueError):  # one that is closed
        for stream in before:
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
    sys.stdout, sys.stderr = (stream and _Lasting(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
        sys.stdout, sys.stderr = before


class _Lasting:
    """A text stream whose first failed write is its last."""

    def __init__(self, stream: TextIO):
        self._stream: TextIO | None = stream
        self._given = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._given, name)

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, what: str, *arguments: str) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, what)(*arguments)
        except (OSError, ValueError):
            self._stream = None
            self._leave()

    def _leave(self) -> None:
        """Let the descriptor lead nowhere: what is still in its buffer would fail again when Python ends."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._given.fileno())
            os.close(nowhere)
