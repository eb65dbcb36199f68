"""The front between callers and the service, over real sockets: what it bounds, and that all else passes."""

import asyncio
import contextlib

import h11
import numpy as np
import pytest
import uvicorn
from http_calls import TOKEN, images, settled, tokens, with_tokens

from dipp_ray.serving.client.by_http import HttpTransport
from dipp_ray.serving.client.reward_client import RewardClient
from dipp_ray.serving.contract.records import ErrorReply
from dipp_ray.serving.http import front as fronts
from dipp_ray.serving.http import headers, passing, refusals
from dipp_ray.serving.http.app import build_http
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


# -- heads ------------------------------------------------------------------------------------------------------------


def test_431_a_header_that_never_ends_and_others_go_on_being_answered():
    async def scenario(port):
        endless, other = await Caller.to(port), await Caller.to(port)
        await endless.send(GET[:-2] + b"X: ")

        async def flood():
            with contextlib.suppress(ConnectionError):
                for _ in range(300):  # 300 MiB, if they were taken
                    await endless.send(bytes([97]) * 2**20)

        flooding = asyncio.create_task(flood())
        for _ in range(5):
            await other.send(GET)
            assert (await other.answer())[0] == 200
        await flooding
        return await endless.ended() or True

    app = Echo()
    assert run(app, scenario) and len(app.seen) == 5


def test_431_is_said_and_a_head_just_within_the_bound_passes():
    async def scenario(port):
        size = headers.MOST_BYTES - len(GET) - len(b"X: \r\n")
        for more, taken in ((0, True), (1, False)):
            caller = await Caller.to(port)
            await caller.send(GET[:-2] + b"X: " + b"a" * (size + more) + b"\r\n\r\n")
            if taken:
                assert (await caller.answer())[0] != 431
            else:
                await error_of(caller, 431, "head_too_long")
        lines = await Caller.to(port)
        await lines.send(GET[:-2] + b"".join(b"X%d: 1\r\n" % i for i in range(headers.MOST_LINES)) + b"\r\n")
        await error_of(lines, 431, "head_too_long")

    app = Echo()
    run(app, scenario)
    assert len(app.seen) <= 1


def test_408_headers_that_come_slowly(monkeypatch):
    monkeypatch.setattr(headers, "LONGEST_S", 0.2)

    async def scenario(port):
        slow, other = await Caller.to(port), await Caller.to(port)

        async def drip():
            with contextlib.suppress(ConnectionError):
                for byte in GET * 100:
                    await slow.send(bytes([byte]) if byte != 10 else b"a")
                    await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        await other.send(GET)
        assert (await other.answer())[0] == 200
        await error_of(slow, 408, "too_slow")
        dripping.cancel()

    run(Echo(), scenario)


def test_a_connection_that_says_nothing_is_closed_without_a_word(monkeypatch):
    monkeypatch.setattr(fronts, "IDLE_S", 0.05)

    async def scenario(port):
        return await (await Caller.to(port)).ended()

    assert run(Echo(), scenario)


def test_the_connection_that_was_silent_longest_makes_room(monkeypatch):
    monkeypatch.setattr(fronts, "MOST_CONNECTIONS", 3)
    app = Echo()

    async def scenario(port):
        app.gate = asyncio.Event()
        working = await Caller.to(port)
        await working.send(GET)
        await settled(lambda: app.seen)
        silent, later = await Caller.to(port), await Caller.to(port)
        await asyncio.sleep(0.05)
        new = await Caller.to(port)
        await new.send(GET)
        assert await silent.ended()
        await settled(lambda: len(app.seen) == 2)
        await later.send(GET)
        await settled(lambda: len(app.seen) == 3)
        assert await (await Caller.to(port)).ended()  # all are at work
        app.gate.set()
        assert [(await caller.answer())[0] for caller in (working, later, new)] == [200] * 3

    run(app, scenario)


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # without a host
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_400_what_two_programs_could_read_differently_goes_no_further(head):
    app = Echo()

    async def scenario(port):
        caller = await Caller.to(port)
        await caller.send(head)
        status, _, _ = await caller.answer()
        assert status in (400, 501) and await caller.ended()

    run(app, scenario)
    assert not app.begun


def test_a_length_beside_chunks_is_not_passed_on():
    """Who reads the one and who reads the other would take the rest for two different requests."""
    app = Echo()

    async def scenario(port):
        caller = await Caller.to(port)
        both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        await caller.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + both)
        return (await caller.answer())[0]

    status = run(app, scenario)
    assert status == 400 or b"content-length" not in app.seen[0][1]


# -- bodies -----------------------------------------------------------------------------------------------------------


def test_one_connection_carries_many_requests_also_sent_ahead():
    async def scenario(port):
        caller = await Caller.to(port)
        for i in range(3):
            await caller.send(post(b"%d" % i))
            assert (await caller.answer())[2] == b"%d." % i
        await caller.send(post(b"a") + post(b"b") + GET)
        assert [(await caller.answer())[2] for _ in range(3)] == [b"a.", b"b.", b"."]
        await caller.send(post(b"c", Connection="close"))
        assert (await caller.answer())[2] == b"c." and await caller.ended()
        old = await Caller.to(port)
        await old.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await old.reader.read()).endswith(b"\r\n\r\n.")

    run(Echo(), scenario)


def test_a_chunked_body_passes_piece_by_piece():
    app = Echo()

    async def scenario(port):
        caller = await Caller.to(port)
        await caller.send(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"one", b"two", b""):
            await caller.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            await settled(lambda: app.begun)  # it is passed on before it has come
        assert (await caller.answer())[2] == b"onetwo."
        await caller.send(GET)
        assert (await caller.answer())[0] == 200
        await caller.send(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
        await error_of(caller, 400, "malformed")

    run(app, scenario)
    assert app.seen[0][1][b"transfer-encoding"] == b"chunked"


def test_a_large_body_and_its_answer_pass_whole():
    data = np.random.default_rng(0).bytes(8 * 2**20)

    async def scenario(port):
        caller = await Caller.to(port)
        sending = asyncio.create_task(caller.send(post(data)))
        head = await caller.reader.readuntil(b"\r\n\r\n")
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(head)
        found = b""
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                parser.receive_data(await caller.reader.read(2**20))
            elif isinstance(event, h11.Data):
                found += event.data
        await sending
        return found

    assert run(Echo(), scenario) == data + b"."


def test_100_continue_is_said_before_the_body():
    async def scenario(port):
        caller = await Caller.to(port)
        head, body = post(b"abc", Expect="100-continue").split(b"abc")[0], b"abc"
        await caller.send(head)
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
        await caller.send(body)
        assert (await caller.answer())[2] == b"abc."

    app = Echo()
    run(app, scenario)
    assert b"expect" not in app.seen[0][1]


def test_an_answer_that_comes_before_the_body_ends_the_connection():
    async def scenario(port):
        caller = await Caller.to(port)
        await caller.send(post(bytes(1000), "/early")[:-500])
        status, sent, body = await caller.answer()
        assert (status, body, sent[b"connection"]) == (413, b"no", b"close") and await caller.ended()

    run(Echo(), scenario)


@pytest.mark.parametrize("sent", [GET, post(b"abcdef")[:-3]])
def test_the_service_is_told_when_a_caller_is_gone(sent):
    app = Echo()

    async def scenario(port):
        app.gate = asyncio.Event()
        caller = await Caller.to(port)
        await caller.send(sent)
        await settled(lambda: app.begun)
        if sent == GET:
            await settled(lambda: app.seen)
        caller.writer.close()
        await settled(lambda: app.left or (sent != GET and app.seen))

    run(app, scenario)


def test_a_caller_who_does_not_take_its_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(passing, "STALL_S", 0.1)
    app = Echo()
    data = bytes(24 * 2**20)

    async def scenario(port):
        caller = await Caller.to(port)
        await caller.send(post(data))
        await settled(lambda: app.seen)
        await asyncio.sleep(0.5)
        with contextlib.suppress(ConnectionError):
            assert len(await caller.reader.read()) < len(data)

    run(app, scenario)


def test_502_where_nothing_is_behind():
    async def main():
        async with asyncio.timeout(20):
            async with serving(Echo()) as behind:
                pass
            front = Front(behind)
            port = await front.listen("127.0.0.1", 0)
            caller = await Caller.to(port)
            await caller.send(GET)
            sent = await error_of(caller, 502, "no_answer")
            assert sent[b"retry-after"] == b"1"
            await front.close()

    asyncio.run(main())


def test_whom_it_calls_for_is_said_where_that_is_not_this_machine(monkeypatch):
    app = Echo()

    async def scenario(port):
        for peer in (None, "10.1.2.3"):
            monkeypatch.setattr(fronts, "_elsewhere", lambda writer, peer=peer: peer)
            caller = await Caller.to(port)
            await caller.send(GET)
            await caller.answer()

    run(app, scenario)
    (_, here, _), (_, there, _) = app.seen
    assert b"x-forwarded-for" not in here and there[b"x-forwarded-for"] == b"10.1.2.3"


@pytest.mark.parametrize(
    ("host", "elsewhere"),
    [("127.0.0.1", False), ("::1", False), ("::ffff:127.0.0.1", False), ("10.0.0.1", True), ("fe80::1%eth0", True)],
)
def test_this_machine_is_told_from_others(host, elsewhere):
    class Writer:
        def get_extra_info(self, name):
            return host, 1

    assert (fronts._elsewhere(Writer()) is not None) == elsewhere


# -- bounds of a trainer ----------------------------------------------------------------------------------------------

KNOWN = tokens(ann=TOKEN, bob=TOKEN + "2")


def test_429_from_the_head_alone_where_a_trainer_has_too_many_calls_open():
    app = Echo()

    async def scenario(port):
        app.gate = asyncio.Event()
        taken = [await Caller.to(port) for _ in range(2)]
        for caller in taken:
            await caller.send(post(b"a", token=TOKEN))
        await settled(lambda: len(app.seen) == 2)
        full = await Caller.to(port)
        await full.send(post(bytes(2**20), token=TOKEN)[:200])  # the body never comes
        sent = await error_of(full, 429, "trainer_full")
        assert sent[b"retry-after"] == b"1"
        other, question = await Caller.to(port), await Caller.to(port)
        await other.send(post(b"b", token=TOKEN + "2"))
        await question.send(GET[:-2] + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        await settled(lambda: len(app.seen) == 4)  # neither another trainer's call nor a question is touched
        app.gate.set()
        assert [(await caller.answer())[0] for caller in (*taken, other, question)] == [200] * 4
        await taken[0].send(post(b"c", token=TOKEN))
        assert (await taken[0].answer())[2] == b"c."  # its places are free again

    run(app, scenario, known=KNOWN)
    assert app.begun == 5


def test_strangers_have_a_bound_of_their_own_and_take_no_trainers_place(monkeypatch):
    monkeypatch.setattr(fronts, "STRANGERS_CALLS", 1)
    app = Echo()

    async def scenario(port):
        app.gate = asyncio.Event()
        stranger, second, known = [await Caller.to(port) for _ in range(3)]
        await stranger.send(post(b"a", token="wrong" * 8))
        await settled(lambda: app.begun == 1)
        await second.send(post(b"a"))
        await error_of(second, 429, "trainer_full")
        await known.send(post(b"a", token=TOKEN))
        await settled(lambda: app.begun == 2)
        app.gate.set()
        assert (await known.answer())[0] == (await stranger.answer())[0] == 200

    run(app, scenario, known=KNOWN)


def test_without_tokens_nobody_is_bounded():
    app = Echo()

    async def scenario(port):
        app.gate = asyncio.Event()
        callers = [await Caller.to(port) for _ in range(20)]
        for caller in callers:
            await caller.send(post(b"a"))
        await settled(lambda: len(app.seen) == 20)
        app.gate.set()
        assert {(await caller.answer())[0] for caller in callers} == {200}

    run(app, scenario)


@pytest.mark.parametrize("known", [KNOWN, None])
def test_whom_the_service_told_to_wait_is_refused_from_the_head_until_then(known):
    app = Echo()

    async def scenario(port):
        app.status, app.sent = 429, {"retry-after": "1"}
        caller, again, other = [await Caller.to(port) for _ in range(3)]
        await caller.send(post(b"a", token=TOKEN))
        assert (await caller.answer())[0] == 429
        app.status = 200
        await again.send(post(b"a", token=TOKEN))
        if known is None:  # who was meant stands in the body
            assert (await again.answer())[0] == 200
            return
        await error_of(again, 429, "trainer_full")
        assert app.begun == 1
        await other.send(post(b"a", token=TOKEN + "2"))
        assert (await other.answer())[0] == 200
        while True:  # its second passes
            later = await Caller.to(port)
            await later.send(post(b"a", token=TOKEN))
            if (await later.answer())[0] == 200:
                break
            await asyncio.sleep(0.05)

    run(app, scenario, known=known)


def test_who_ignores_retry_after_waits_for_its_refusals(monkeypatch):
    app = Echo()
    slept = []

    async def scenario(port):
        app.gate = asyncio.Event()
        sleep = asyncio.sleep

        async def seen(seconds):
            if seconds == fronts.RETRY_S:
                slept.append(seconds)
                seconds = 0
            await sleep(seconds)

        monkeypatch.setattr(fronts.asyncio, "sleep", seen)
        taken = [await Caller.to(port) for _ in range(2)]
        for caller in taken:
            await caller.send(post(b"a", token=TOKEN))
        await settled(lambda: len(app.seen) == 2)
        for _ in range(4):  # two at once are as many as it may have open
            caller = await Caller.to(port)
            await caller.send(post(b"a", token=TOKEN))
            await error_of(caller, 429, "trainer_full")
        app.gate.set()

    run(app, scenario, known=KNOWN)
    assert len(slept) == 2


def test_what_it_refused_is_in_the_metrics(monkeypatch):
    monkeypatch.setattr(headers, "LONGEST_S", 0.5)
    service, begun = build_http(with_tokens(ann=TOKEN)), []

    async def app(scope, receive, send):
        begun.append(scope["path"])
        await service(scope, receive, send)

    async def scenario(port):
        def question(more=""):
            return f"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n{more}\r\n".encode()

        caller = await Caller.to(port)
        await caller.send(question("X-Dipp-Ray-Refused: trainer_full=9\r\n"))
        assert b"front_refusals" not in (await caller.answer())[2]  # a caller cannot say it
        late, long, full, taken = [await Caller.to(port) for _ in range(4)]
        await late.send(GET[:-2])
        await error_of(late, 408, "too_slow")
        await long.send(GET[:-2] + b"a: b\r\n" * 200 + b"\r\n")
        await error_of(long, 431, "head_too_long")
        await taken.send(post(bytes(9), "/v1/score", TOKEN, **{"Content-Type": "application/json"})[:-1])
        await settled(lambda: "/v1/score" in begun)
        await full.send(post(bytes(9), "/v1/score", TOKEN))
        await error_of(full, 429, "trainer_full")
        await caller.send(question())
        text = (await caller.answer())[2].decode()
        assert text.count("# TYPE dipp_ray_reward_front_refusals_total counter") == 1
        for code in ("too_slow", "head_too_long", "trainer_full"):
            assert f'dipp_ray_reward_front_refusals_total{{code="{code}"}} 1.0\n' in text

    run(app, scenario, known=KNOWN, calls=1)


@pytest.mark.parametrize("value", ["", "a", "a=1,", 'a"=1', "a=1\nb=2", "a=-1", ",".join(["a=1"] * 33)])
def test_what_is_no_count_is_left_out(value):
    assert refusals.as_text(value) == b""


# -- the service behind it --------------------------------------------------------------------------------------------


def test_a_client_is_answered_through_it_and_comes_again_where_it_was_refused():
    service = with_tokens(ann=TOKEN)
    x = images(2)

    async def scenario(port):
        transport = HttpTransport([f"http://127.0.0.1:{port}"], TOKEN, "fp32")
        async with RewardClient(transport, 30, on_nonfinite="raise", space="images", trainer="ann") as client:
            replies = await asyncio.gather(*(client.score(x, ["a", "b"], gradient=True) for _ in range(6)))
        return replies

    replies = run(build_http(service), scenario, known=tokens(ann=TOKEN), calls=2)
    assert all(np.array_equal(reply["reward"], replies[0]["reward"]) for reply in replies)
    np.testing.assert_allclose(replies[0]["scores"]["bright"], x.mean((1, 2, 3)), rtol=1e-6)
