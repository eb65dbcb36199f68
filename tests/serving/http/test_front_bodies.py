"""What the front passes on, over real sockets: bodies and answers as they come, and who is gone."""

import asyncio
import contextlib

import h11
import numpy as np
import pytest
from front_calls import GET, Caller, Echo, error_of, post, run, serving
from http_calls import settled

from dipp_ray.serving.http import front as fronts
from dipp_ray.serving.http import passing
from dipp_ray.serving.http.front import Front


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
