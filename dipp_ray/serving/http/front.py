"""The front: what listens where callers come in, before Ray Serve's HTTP proxy, which bounds neither headers nor calls.

It reads a request's head, bounded in size and time, says from that alone who calls, and refuses a trainer at its bound
before its body is read. All else it passes on, and leaves to the service: what a call is, and whether a token is right.
"""

import asyncio
from collections import Counter
from ipaddress import ip_address

import h11

from dipp_ray.serving.contract.failures import TrainerFull
from dipp_ray.serving.contract.records import JSON
from dipp_ray.serving.http.admission import RETRY_S, Admission
from dipp_ray.serving.http.errors import HttpError, as_http
from dipp_ray.serving.http.headers import MOST_BYTES, read_head
from dipp_ray.serving.http.passing import CHUNK, Exchange, parsed
from dipp_ray.serving.http.refusals import HEADER, PATH, as_header
from dipp_ray.serving.http.tokens import bearer, trainer_of

MOST_CONNECTIONS = 1000
STRANGERS_CALLS = 8  # requests that one address may have open where tokens are, and it sends none of them
IDLE_S = 75.0  # between two requests of one connection
LINGER_S, LINGER_BYTES = 1.0, 2**20  # what comes after a refusal is thrown away: a reset would take the refusal along


class Front:
    """behind: host and port of the service. Used from one event loop."""

    def __init__(self, behind: tuple[str, int]):
        self._behind = behind
        self._tokens: dict[str, str] = {}
        self._calls = STRANGERS_CALLS
        self._admission = Admission()
        self._refused: Counter[str] = Counter()  # of the last RETRY_S seconds, by caller
        self._refusals: Counter[str] = Counter()  # from the start, by code
        self._waiting: dict[asyncio.Task, None] = {}  # connections without a call, the longest first
        self._connections: set[asyncio.Task] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        """Take connections from now on; returns the port, which Python chooses for 0. Raises OSError."""
        self._server = await asyncio.start_server(self._connected, host, port, limit=MOST_BYTES, backlog=1024)
        return self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def know(self, tokens: dict[str, str], calls: int) -> None:
        """From now on: whose tokens are which (SHA-256 in hex to the trainer), how many calls each may have open."""
        self._tokens, self._calls = tokens, calls

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= MOST_CONNECTIONS:
            if not self._waiting:  # all are at work
                writer.transport.abort()
                return
            longest = next(iter(self._waiting))  # who has sent no call for the longest time makes room
            del self._waiting[longest]
            longest.cancel()
        self._connections.add(task)
        try:
            await self._serve(task, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            pass  # the caller is gone, or was silent
        except asyncio.CancelledError:
            pass  # for another one, or at the end
        finally:
            self._waiting.pop(task, None)
            self._connections.discard(task)
            writer.close()

    async def _serve(self, task: asyncio.Task, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request after the other."""
        writer.transport.set_write_buffer_limits(high=CHUNK)
        follows: asyncio.Task | None = asyncio.create_task(reader.read(1))
        while follows is not None:
            self._waiting[task] = None
            try:
                async with asyncio.timeout(IDLE_S):
                    first = await follows
                if not first:
                    return
                follows = await self._exchange(task, reader, writer, first)
            except HttpError as error:
                self._refusals[error.code] += 1
                await _refuse(reader, writer, error)
                return

    async def _exchange(self, task, reader, writer, first: bytes) -> asyncio.Task | None:
        server = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_BYTES)
        request = parsed(server, await read_head(reader, first))
        peer = _elsewhere(writer)
        who, most = self._caller(request, peer)
        exchange = Exchange(reader, writer, server)
        try:
            with self._admission.call(who, most):
                self._waiting.pop(task, None)
                follows = await exchange.run(self._with_refusals(request), peer, self._behind)
        except TrainerFull as error:
            await self._slow_down(who, most)
            raise as_http(error) from None
        if exchange.status == 429 and self._tokens:
            self._admission.hold(who)
        return follows

    def _caller(self, request: h11.Request, peer: str | None) -> tuple[str, int]:
        """(who calls, how many such requests it may have open). Calls and questions (GET) are counted apart."""
        kind = "" if request.method == b"POST" else " (questions)"
        if not self._tokens:  # this machine alone is answered, and says in the body who it is
            return "this machine", MOST_CONNECTIONS
        headers = {name: value.decode("latin-1") for name, value in request.headers}
        trainer = trainer_of(bearer(headers.get(b"authorization", "")), self._tokens)
        if trainer is None:
            return f"{peer or 'this machine'} without a token{kind}", STRANGERS_CALLS
        return f"trainer '{trainer}'{kind}", self._calls

    def _with_refusals(self, request: h11.Request) -> h11.Request:
        """The request as it goes on: one for the metrics tells the service what was refused here."""
        headers = [(name, value) for name, value in request.headers.raw_items() if name.lower() != HEADER]
        if request.target.partition(b"?")[0] == PATH and self._refusals:
            headers.append(as_header(self._refusals))
        return h11.Request(
            method=request.method, target=request.target, headers=headers, http_version=request.http_version
        )

    async def _slow_down(self, who: str, most: int) -> None:
        """Who is refused more often than an obedient caller can be waits for its refusal: it would not wait after."""
        self._refused[who] += 1
        asyncio.get_running_loop().call_later(RETRY_S, self._forget, who)
        if self._refused[who] > most:
            await asyncio.sleep(RETRY_S)

    def _forget(self, who: str) -> None:
        self._refused[who] -= 1
        if not self._refused[who]:
            del self._refused[who]


def _elsewhere(writer: asyncio.StreamWriter) -> str | None:
    """The caller's address where it is not this machine."""
    host = str(writer.get_extra_info("peername")[0]).partition("%")[0]
    found = ip_address(host)
    mapped = getattr(found, "ipv4_mapped", None)
    return None if (mapped or found).is_loopback else host


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: HttpError) -> None:
    """Say it, and end the connection in such a way that the caller can read it."""
    headers = {"Content-Type": JSON, "Content-Length": str(len(error.body)), **error.headers, "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {error.status} {error.code}\r\n{head}\r\n".encode() + error.body)
    await writer.drain()
    writer.write_eof()
    thrown = 0
    async with asyncio.timeout(LINGER_S):
        while (data := await reader.read(CHUNK)) and thrown < LINGER_BYTES:
            thrown += len(data)
