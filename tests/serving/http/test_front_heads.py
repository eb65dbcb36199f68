"""The front between callers and the service, over real sockets: heads, and how long they may be and take."""

import asyncio
import contextlib

import pytest
from front_calls import GET, Caller, Echo, error_of, run
from http_calls import settled

from dipp_ray.serving.http import front as fronts
from dipp_ray.serving.http import headers


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
