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


class Uploads:
    """Bodies that are on their way or being read, at most so many bytes, shared among trainers as the queue is."""

    def __init__(self, most: int):
        self._most = most
        self._bytes: Counter[str] = Counter()

    @contextmanager
    def room(self, trainer: str, size: int):
        """Raises QueueFull where there is none."""
        if not finds_room(size, self._bytes[trainer], self._bytes.total(), self._most):
            raise QueueFull("too many calls are being sent at once: try again", RETRY_S)
        self._bytes[trainer] += size
        try:
            yield
        finally:
            self._bytes[trainer] -= size
            if not self._bytes[trainer]:
                del self._bytes[trainer]


def announced(request: Request, most: int) -> int:
    """How long the body says it is, in bytes; `most` where it does not say, and `most` + 1 for all that is longer."""
    length = request.headers.get("content-length", "")
    if not (length.isdecimal() and length.isascii()):
        return most
    return min(int(length.lstrip("0")[:20] or 0), most + 1)


def require_length(request: Request, most: int) -> None:
    """Refuse a body that says itself that it is too long, before any of it is held."""
    if announced(request, most) > most:
        raise _too_long(most)


async def body_of(request: Request, most: int, longest_s: float) -> bytes:
    """The body, refused while it comes where it is too long or takes more than `longest_s` seconds."""
    parts, total = [], 0
    try:
        async with asyncio.timeout(longest_s):
            async for part in request.stream():
                total += len(part)
                if total > most:
                    raise _too_long(most)
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
