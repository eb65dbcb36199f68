"""What the front bounds for each trainer, over real sockets, what it counts, and the service behind it."""

import asyncio

import numpy as np
import pytest
from front_calls import GET, Caller, Echo, error_of, post, run
from http_calls import TOKEN, images, settled, tokens, with_tokens

from dipp_ray.serving.client.by_http import OF_CALLER, HttpTransport
from dipp_ray.serving.client.reward_client import RewardClient
from dipp_ray.serving.http import front as fronts
from dipp_ray.serving.http import headers, refusals
from dipp_ray.serving.http.app import build_http

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


def test_a_client_is_answered_through_it_and_comes_again_where_it_was_refused():
    service = with_tokens(ann=TOKEN)
    x = images(2)

    async def scenario(port):
        transport = HttpTransport([f"http://127.0.0.1:{port}"], TOKEN, "fp32", OF_CALLER)
        async with RewardClient(transport, 30, on_nonfinite="raise", space="images", trainer="ann") as client:
            replies = await asyncio.gather(*(client.score(x, ["a", "b"], gradient=True) for _ in range(6)))
        return replies

    replies = run(build_http(service), scenario, known=tokens(ann=TOKEN), calls=2)
    assert all(np.array_equal(reply["reward"], replies[0]["reward"]) for reply in replies)
    np.testing.assert_allclose(replies[0]["scores"]["bright"], x.mean((1, 2, 3)), rtol=1e-6)
