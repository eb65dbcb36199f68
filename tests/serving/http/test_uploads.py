"""Bodies on their way in: what has come is counted, small ones are always taken."""

import asyncio
from dataclasses import replace

import pytest
from http_calls import LOOPBACK, TEXTS, TOKEN, ask, client, counted, images, made, packed, refused, settled, with_tokens

from dipp_ray.serving.contract.failures import QueueFull
from dipp_ray.serving.contract.records import MIB, SAFETENSORS
from dipp_ray.serving.http import app as apps
from dipp_ray.serving.http import uploads as module
from dipp_ray.serving.http.app import build_http
from dipp_ray.serving.http.uploads import Uploads


@pytest.fixture
def no_small(monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)


def test_bodies_on_their_way_are_bounded_together_and_shared(no_small):
    uploads = Uploads(100)
    with uploads.body("a", 40) as first:
        first.take(40)
        with uploads.body("a", 0) as second, pytest.raises(QueueFull, match="too many calls are being sent"):
            second.take(11)  # 49 would be free, and a would hold 51
        with uploads.body("a", 0) as second, uploads.body("b", 0) as third:
            second.take(10)
            third.take(50)
        with uploads.body("b", 0) as third, pytest.raises(QueueFull):
            third.take(61)
    with uploads.body("a", 100) as whole:
        whole.take(100)
    assert not uploads._bytes


def test_what_is_announced_holds_nothing_and_is_refused_where_it_would_find_no_room(no_small):
    uploads = Uploads(100)
    with uploads.body("a", 90), uploads.body("a", 90), uploads.body("b", 90) as held:
        held.take(90)
        with pytest.raises(QueueFull), uploads.body("c", 11):
            pass
        with uploads.body("c", 10):
            pass


def test_a_small_body_is_always_taken_and_counted():
    uploads = Uploads(2 * module.SMALL)
    with uploads.body("a", 0) as large:
        large.take(2 * module.SMALL)
        with uploads.body("b", module.SMALL) as small:
            small.take(module.SMALL - 1)
            small.take(1)
            assert uploads._bytes.total() == 3 * module.SMALL
            with pytest.raises(QueueFull):
                small.take(1)
        with pytest.raises(QueueFull), uploads.body("b", module.SMALL + 1):
            pass
    assert not uploads._bytes


class Sender:
    """A call whose body comes when the test lets it."""

    def __init__(self, app, *headers):
        self.parts, self.sent = asyncio.Queue(), []
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/v1/score", "raw_path": b"/v1/score", "query_string": b"", "root_path": "",
            "headers": [(b"content-type", SAFETENSORS.encode()), *headers], "client": LOOPBACK, "server": ("a", 80),
        }  # fmt: skip
        self.task = asyncio.ensure_future(app(scope, self.parts.get, self._send))

    async def _send(self, message):
        self.sent.append(message)

    def part(self, body, more=True):
        self.parts.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def status(self):
        await self.task
        return self.sent[0]["status"]


BEARER = (b"authorization", f"Bearer {TOKEN}".encode())


def test_who_announces_much_and_sends_nothing_takes_no_room_from_others():
    app = build_http(made(limits={"body_mib": 8}, queue={"mib": 8}))

    async def run():
        silent = [Sender(app, (b"content-length", b"%d" % (8 * MIB))) for _ in range(8)]
        chunked = [Sender(app) for _ in range(8)]
        for sender in chunked:
            sender.part(packed(images())[:100])
        await asyncio.sleep(0.05)
        caller = Sender(app, (b"content-length", b"%d" % (3 * MIB)))
        for _ in range(3):
            caller.part(bytes(MIB))
        caller.part(b"", more=False)
        small = Sender(app)
        small.part(packed(images()), more=False)
        assert await caller.status() == 400 and await small.status() == 200  # read to its end, and no call
        for sender in chunked:
            sender.part(packed(images())[100:], more=False)
        assert [await sender.status() for sender in chunked] == [200] * 8
        for sender in silent:
            sender.task.cancel()

    asyncio.run(run())


def test_a_large_body_that_finds_no_room_is_refused_while_it_comes():
    app = build_http(made(limits={"body_mib": 8}, queue={"mib": 8}))

    async def run():
        first, second = Sender(app), Sender(app)
        first.part(bytes(5 * MIB))
        await settled(first.parts.empty)
        await asyncio.sleep(0.05)
        for _ in range(5):
            second.part(bytes(MIB))
        assert await second.status() == 503
        assert dict(second.sent[0]["headers"])[b"retry-after"] == b"1"
        first.part(b"", more=False)
        assert await first.status() == 400

    asyncio.run(run())


# -- a trainer's bound, from the header alone --------------------------------------------------------------------------


def test_a_trainer_at_its_bound_is_refused_before_its_body_is_read():
    service = with_tokens(ann=TOKEN)
    service.settings = replace(service.settings, queue=made(queue={"calls": 2}).settings.queue)
    app = build_http(service)

    async def run():
        open_ones = [Sender(app, BEARER) for _ in range(2)]
        await asyncio.sleep(0.05)
        third = Sender(app, BEARER)
        assert await third.status() == 429 and third.parts.empty()
        assert dict(third.sent[0]["headers"])[b"retry-after"] == b"1"
        for sender in open_ones:
            sender.part(packed(images()), more=False)
        assert [await sender.status() for sender in open_ones] == [200, 200]
        again = Sender(app, BEARER)
        again.part(packed(images()), more=False)
        assert await again.status() == 200

    asyncio.run(run())


def test_a_trainer_whose_rows_wait_is_refused_before_its_body_is_read():
    service = made(limits={"rows": 8}, queue={"rows": 8}, deterministic=True)
    service.tokens = with_tokens(ann=TOKEN).tokens
    app = build_http(service)

    async def run():
        gate = service.handles["bright"].gate = asyncio.Event()
        taken = [Sender(app, BEARER) for _ in range(3)]
        for sender in taken:
            sender.part(packed(images(8), ["a"] * 8), more=False)
        await settled(lambda: len(service._scheduler.queue) == 8)
        full = Sender(app, BEARER)
        assert await full.status() == 429 and full.parts.empty()
        gate.set()
        assert [await sender.status() for sender in taken] == [200] * 3

    asyncio.run(run())


# -- what is counted ---------------------------------------------------------------------------------------------------


def test_refused_counts_bodies_that_are_no_call():
    with client(made(limits={"body_mib": 1})) as opened:
        refused(ask(opened, b"nonsense"), 400)
        refused(ask(opened, b"{}", "application/json"), 422)
        refused(ask(opened, b"", "text/plain"), 415)
        refused(ask(opened, bytes(2 * MIB)), 413)
        assert ask(opened, packed(images(), TEXTS)).status_code == 200
        refused(ask(opened, packed(images(), TEXTS[:1])), 422)  # a call, and one that cannot be answered
        calls = counted(opened.get("/metrics").text, "calls", "trainer", "outcome")
    assert calls == {("anonymous", "refused"): 5, ("anonymous", "answered"): 1}


def test_refused_counts_under_the_name_of_the_token():
    headers = {"authorization": f"Bearer {TOKEN}"}
    with client(with_tokens(ann=TOKEN)) as opened:
        refused(ask(opened, b"nonsense", **headers), 400)
        refused(ask(opened, b"nonsense"), 401)  # nobody's
        calls = counted(opened.get("/metrics", headers=headers).text, "calls", "trainer", "outcome")
    assert calls == {("ann", "refused"): 1}


def test_anybody_is_named_as_the_contract_names_who_does_not_say():
    from dipp_ray.serving.contract.records import ScoreOptions

    assert ScoreOptions(prompts=["a"]).trainer == apps.ANYBODY
