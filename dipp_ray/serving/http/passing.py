"""One HTTP exchange through the front: a request to the service behind and its answer back, piece by piece.

Both sides are parsed and written anew (h11), so a head that two programs could read differently goes no further.
"""

import asyncio

import h11

from dipp_ray.serving.http.errors import HttpError

CHUNK = 64 * 1024  # bytes that are read at once; no more than a few of them are held on either side
STALL_S = 60.0  # a caller who takes nothing of its answer for so long is given up
OWN_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"expect"}


def parsed(server: h11.Connection, head: bytes) -> h11.Request:
    """The request that a head asks for. Raises HttpError for what is none."""
    try:
        server.receive_data(head)
        request = server.next_event()
    except h11.RemoteProtocolError:
        request = None
    if not isinstance(request, h11.Request):
        raise HttpError(400, "malformed", "this is no HTTP/1.1 request")
    return request


def kept(message: h11.Request | h11.Response) -> list[tuple[bytes, bytes]]:
    """Headers that are not about the connection alone."""
    return [(name, value) for name, value in message.headers.raw_items() if name.lower() not in OWN_HOP]


class Exchange:
    """The way of one request: from a caller, whose parser is `server`, to the service and back.

    answered: whether some of the answer went out. status: the answer's, 0 before it came.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: h11.Connection):
        self._reader, self._writer, self._server = reader, writer, server
        self._behind = h11.Connection(h11.CLIENT)
        self.answered = False
        self.status = 0
        self._ahead = False  # whether the caller sent more behind a body of unknown length, which cannot be given back

    async def run(self, request: h11.Request, peer: str | None, address: tuple[str, int]) -> asyncio.Task | None:
        """Pass `request` on to the service at `address` and bring its answer.

        peer: whom the service is told that it is for, None for this machine. Returns the task that waits for the first
        byte of the caller's next request, or None where the connection ends here. Raises HttpError, before anything
        was answered, where the service gives no answer or the body is none.
        """
        try:
            from_behind, behind = await asyncio.open_connection(*address, limit=CHUNK)
        except OSError:
            raise _no_answer() from None
        up: asyncio.Task | None = None
        down: asyncio.Task | None = None
        try:
            behind.write(self._send_behind(_for_behind(request, peer)))
            up = asyncio.create_task(self._upload(request, behind))
            down = asyncio.create_task(self._download(from_behind))
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if up.done() and not down.done():
                if not up.result():  # the caller is gone: the service is told by the end of its connection
                    return None
                await asyncio.wait({down})
            down.result()
            if self._server.our_state is self._server.their_state is h11.DONE and not self._ahead:
                follows, up = up, None
                return follows
            return None
        except (h11.RemoteProtocolError, ConnectionError) as error:
            if self.answered:
                return None
            if down is not None and down.done():
                raise _no_answer() from None
            raise HttpError(400, "malformed", "the body is none of HTTP/1.1") from error
        finally:
            for task in (up, down):
                if task is not None:
                    task.cancel()
            behind.close()

    async def _upload(self, request: h11.Request, behind: asyncio.StreamWriter) -> bytes:
        """Pass the body on; then the first byte of what the caller sends next, b"" where it is gone."""
        server = self._server
        if server.they_are_waiting_for_100_continue:
            self._writer.write(server.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        left = _length(request)
        while True:
            event = server.next_event()
            if event is h11.NEED_DATA:
                data = await self._reader.read(CHUNK if left is None else min(CHUNK, left))
                if not data:
                    return b""
                left = left and left - len(data)
                server.receive_data(data)
                continue
            assert isinstance(event, h11.Data | h11.EndOfMessage)
            try:
                behind.write(self._send_behind(event))
                await behind.drain()
            except ConnectionError:  # it has answered already, or is gone: its answer says which
                await asyncio.Event().wait()
            if isinstance(event, h11.EndOfMessage):
                break
        self._ahead = bool(server.trailing_data[0])
        return server.trailing_data[0] or await self._reader.read(1)

    async def _download(self, from_behind: asyncio.StreamReader) -> None:
        """Bring the answer."""
        while True:
            event = self._behind.next_event()
            if event is h11.NEED_DATA:
                self._behind.receive_data(await from_behind.read(CHUNK))
            elif isinstance(event, h11.Response):
                self.status = event.status_code
                # What is left of the body is read by nobody.
                close = [(b"Connection", b"close")] if self._server.their_state is not h11.DONE else []
                answer = h11.Response(status_code=self.status, headers=kept(event) + close, reason=event.reason)
                await self._answer(answer)
            elif isinstance(event, h11.Data | h11.EndOfMessage):
                await self._answer(event)
                if isinstance(event, h11.EndOfMessage):
                    return
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionError("the service closed the connection")

    async def _answer(self, event: h11.Event) -> None:
        self.answered = True
        self._writer.write(self._server.send(event) or b"")
        try:
            async with asyncio.timeout(STALL_S):
                await self._writer.drain()
        except TimeoutError:
            self._writer.transport.abort()
            raise ConnectionError("the caller does not take its answer") from None

    def _send_behind(self, event: h11.Event) -> bytes:
        return self._behind.send(event) or b""


def _for_behind(request: h11.Request, peer: str | None) -> h11.Request:
    headers = [*kept(request), (b"Connection", b"close")]
    if not any(name.lower() == b"host" for name, _ in headers):  # HTTP/1.0
        headers.append((b"Host", b"localhost"))
    if peer is not None:
        headers.append((b"X-Forwarded-For", peer.encode()))
    return h11.Request(method=request.method, target=request.target, headers=headers)


def _length(request: h11.Request) -> int | None:
    """The body's length in bytes, None where its end is marked in it."""
    found = dict(request.headers)
    return None if b"transfer-encoding" in found else int(found.get(b"content-length", b"0"))


def _no_answer() -> HttpError:
    return HttpError(502, "no_answer", "the service gives no answer now: try again", {"Retry-After": "1"})
