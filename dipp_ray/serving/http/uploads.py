"""Bodies of HTTP requests on their way in: bounded in length, in time, and in what all of them hold together."""

import asyncio
from collections import Counter
from contextlib import contextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from dipp_ray.serving.contract.failures import QueueFull
from dipp_ray.serving.contract.records import MIB
from dipp_ray.serving.core.queue import finds_room
from dipp_ray.serving.http.errors import HttpError

RETRY_S = 1
SMALL = 256 * 1024  # bytes of any body that are always taken: those who hold much leave the door open


class Uploads:
    """Bodies that are on their way or being read: at most so many bytes, shared among trainers as the queue is.

    Bytes that have come are counted, not those that were announced; the first SMALL of a body are always taken.
    """

    def __init__(self, most: int):
        self._most = most
        self._bytes: Counter[str] = Counter()

    @contextmanager
    def body(self, trainer: str, announced: int):
        """A `Body` while it is held. announced: its bytes, 0 where it does not say. Raises QueueFull where as many
        would find no room now."""
        if announced > SMALL:
            self.require_room(trainer, 0, announced)
        body = Body(self, trainer)
        try:
            yield body
        finally:
            self.count(trainer, -body.size)

    def count(self, trainer: str, size: int) -> None:
        self._bytes[trainer] += size
        if not self._bytes[trainer]:
            del self._bytes[trainer]

    def require_room(self, trainer: str, held: int, size: int) -> None:
        """Raise QueueFull where a body of which `held` bytes are counted may not have `size` in all."""
        if not finds_room(size, self._bytes[trainer] - held, self._bytes.total() - held, self._most):
            raise QueueFull("too many calls are being sent at once: try again", RETRY_S)


class Body:
    """How much of one body has come."""

    def __init__(self, uploads: Uploads, trainer: str):
        self._uploads, self._trainer = uploads, trainer
        self.size = 0

    def take(self, size: int) -> None:
        """Count `size` bytes more. Raises QueueFull where there is no room for them."""
        if self.size + size > SMALL:
            self._uploads.require_room(self._trainer, self.size, self.size + size)
        self._uploads.count(self._trainer, size)
        self.size += size


def announced(request: Request, most: int) -> int:
    """How long the body says it is, in bytes; 0 where it does not say, and `most` + 1 for all that is longer."""
    length = request.headers.get("content-length", "")
    if not (length.isdecimal() and length.isascii()):
        return 0
    return min(int(length.lstrip("0")[:20] or 0), most + 1)


def require_length(request: Request, most: int) -> None:
    """Refuse a body that says itself that it is too long, before any of it is held."""
    if announced(request, most) > most:
        raise _too_long(most)


async def body_of(request: Request, held: Body, most: int, longest_s: float) -> bytes:
    """The body, refused while it comes where it is too long, finds no room or takes more than `longest_s` seconds."""
    parts, total = [], 0
    try:
        async with asyncio.timeout(longest_s):
            async for part in request.stream():
                total += len(part)
                if total > most:
                    raise _too_long(most)
                held.take(len(part))
                parts.append(part)
    except TimeoutError:
        raise HttpError(
            408, "too_slow", f"the body had not come within {longest_s:g} s: send fewer rows", {"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise HttpError(400, "cut_off", "the caller left before all of the body had come") from None
    return b"".join(parts)


def _too_long(most: int) -> HttpError:
    return HttpError(
        413, "too_long", f"the body is longer than {most / MIB:g} MiB: send fewer rows", {"Connection": "close"}
    )
