"""The head of an HTTP request on its way in (request line and headers): bounded in bytes, in lines and in time."""

import asyncio

from dipp_ray.serving.http.errors import HttpError

MOST_BYTES = 64 * 1024
MOST_LINES = 128
LONGEST_S = 10.0  # from a head's first byte to its end
END = b"\r\n\r\n"


async def read_head(reader: asyncio.StreamReader, first: bytes) -> bytes:
    """The head that begins with `first`, up to its empty line and not a byte further.

    reader: made with limit=MOST_BYTES, so that no more is held. Raises HttpError: 431 where it is too long, 408 where
    it does not come in time; IncompleteReadError where the caller leaves.
    """
    try:
        async with asyncio.timeout(LONGEST_S):
            head = first + await reader.readuntil(END)
    except asyncio.LimitOverrunError:
        raise _too_long() from None
    except TimeoutError:
        raise HttpError(408, "too_slow", f"the headers had not come within {LONGEST_S:g} s: try again") from None
    if len(head) > MOST_BYTES or head.count(b"\n") > MOST_LINES:
        raise _too_long()
    return head


def _too_long() -> HttpError:
    most = f"at most {MOST_BYTES // 1024} KiB in {MOST_LINES} lines are read"
    return HttpError(431, "head_too_long", f"the request's headers do not end: {most}")
