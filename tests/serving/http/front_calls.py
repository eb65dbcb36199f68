"""A front before something that answers, and connections to it that send what they like."""

import asyncio
import contextlib

import h11
import uvicorn
from http_calls import settled

from dipp_ray.serving.contract.records import ErrorReply
from dipp_ray.serving.http.front import Front

GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"


class Echo:
    """What stands behind: answers what it was sent. `seen`: (path, headers, body) of each request. `gate`: answers
    wait for it. `status`, `sent`: of the answer."""

    def __init__(self):
        self.seen, self.gate, self.status, self.sent, self.begun, self.left = [], None, 200, {}, 0, 0

    async def __call__(self, scope, receive, send):
        self.begun += 1
        if scope["path"] == "/early":  # without reading the body
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2")]})
            return await send({"type": "http.response.body", "body": b"no"})
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.seen.append((scope["path"], dict(scope["headers"]), body))
        if self.gate is not None:
            gate = asyncio.ensure_future(self.gate.wait())
            gone = asyncio.ensure_future(receive())  # a disconnect
            await asyncio.wait({gate, gone}, return_when=asyncio.FIRST_COMPLETED)
            gate.cancel()
            self.left += gone.done()
            gone.cancel()
        sent = [(name.encode(), value.encode()) for name, value in self.sent.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": sent})  # chunked
        for i in range(0, len(body), 100_000):
            await send({"type": "http.response.body", "body": body[i : i + 100_000], "more_body": True})
        await send({"type": "http.response.body", "body": b"."})


@contextlib.asynccontextmanager
async def serving(app):
    """(host, port) of an application under uvicorn, as Serve's proxy runs it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
    server.install_signal_handlers = lambda: None
    server.config.setup_event_loop = lambda: None
    running = asyncio.create_task(server._serve())
    await settled(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = server.force_exit = True
        await running


@contextlib.asynccontextmanager
async def opened(app, known=None, calls=2):
    """The port of a front before `app`. known: the tokens."""
    async with serving(app) as behind:
        front = Front(behind)
        front.know(known or {}, calls)
        port = await front.listen("127.0.0.1", 0)
        try:
            yield port
        finally:
            await front.close()


def run(app, scenario, **settings):
    async def main():
        async with asyncio.timeout(60), opened(app, **settings) as port:
            return await scenario(port)

    return asyncio.run(main())


class Caller:
    """A connection that sends what it likes."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.parser = reader, writer, h11.Connection(h11.CLIENT)

    @classmethod
    async def to(cls, port):
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, method="GET"):
        """(status, headers, body) of the next answer."""
        parser, body = h11.Connection(h11.CLIENT), b""
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        parser.send(h11.EndOfMessage())
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                # Not a byte of the answer after it: those are the next one's.
                parser.receive_data(await self.reader.read(1))
            elif isinstance(event, h11.Response):
                status, found = event.status_code, dict(event.headers)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, found, body
            elif isinstance(event, h11.ConnectionClosed):
                raise EOFError

    async def ended(self):
        with contextlib.suppress(ConnectionError):
            return await self.reader.read() == b""
        return True


async def error_of(caller, status, code):
    found, sent, body = await caller.answer()
    assert found == status and ErrorReply.model_validate_json(body).error.code == code, body
    assert sent[b"connection"] == b"close" and await caller.ended()
    return sent


def post(body, path="/x", token=None, **more):
    lines = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    lines += [f"{name}: {value}" for name, value in more.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
