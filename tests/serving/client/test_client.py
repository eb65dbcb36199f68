"""The client alone: what it retries, what bounds it, what it refuses."""

import asyncio
import time

import numpy as np
import pytest

from dipp_ray.errors import CallError, NonFiniteError, RewardAwayError, RewardUnavailableError, UserError
from dipp_ray.serving.client import by_http
from dipp_ray.serving.client import reward_client as module
from dipp_ray.serving.client.by_http import OF_CALLER, OF_RUN, HttpTransport, Named
from dipp_ray.serving.client.reward_client import RewardClient
from dipp_ray.serving.client.transport import TransportError
from dipp_ray.serving.contract.records import LimitsRecord, ModelRecord, ServiceRecord

X, PROMPTS = np.zeros((3, 1, 8, 8), np.float32), ["a", "b", "c"]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 1e-3)


class Flaky:
    """A transport that fails `faults` times and then answers."""

    def __init__(self, faults, error, **reply):
        self.faults, self.error, self.attempts = faults, error, 0
        self.reply = {"reward": np.ones(3, np.float32), "scores": {}, "gradient": None, "failed": {}} | reply

    async def score(self, x, prompts, question, trainer, expires_s):
        self.attempts += 1
        if self.attempts <= self.faults:
            raise self.error
        return self.reply


class Hangs:
    async def score(self, *_):
        await asyncio.Event().wait()


class Described:
    def __init__(self, ill=False, **changes):
        self.ill = ill
        term = {
            "model": "clip",
            "differentiable": True,
            "weight": 1.0,
            "mean": 0.0,
            "deviation": 1.0,
            "hinge": None,
            "cap": None,
        }
        models = [ModelRecord(name=name, held_out=name == "watch", required=True, **term) for name in ("a", "watch")]
        limits = LimitsRecord(
            body_mib=1, header_kib=1, upload_s=1, rows=8, image_side=8, latent_side=8, aspect=8, prompt_chars=8
        )
        self.record = ServiceRecord(
            **{"name": "shared", "version": "1", "deterministic": True, "batch_rows": 8, "latent_channels": 1,
               "models": models, "limits": limits} | changes
        )  # fmt: skip

    async def describe(self):
        return self.record

    async def require_health(self):
        if self.ill:
            raise TransportError("reward 'a': not finite")


def client_of(transport, deadline_s, on_nonfinite="raise"):
    return RewardClient(transport, deadline_s, on_nonfinite=on_nonfinite, space="latents", trainer="me")


def http(*urls):
    return HttpTransport(list(urls), None, "fp32", OF_RUN)


def score(transport, deadline_s=30.0, gradient=False, **settings):
    return asyncio.run(client_of(transport, deadline_s, **settings).score(X, PROMPTS, gradient))


def test_transport_faults_are_retried():
    flaky = Flaky(3, TransportError("replica died"))
    assert score(flaky)["reward"].tolist() == [1, 1, 1]
    assert flaky.attempts == 4


def test_a_refused_call_is_not_retried():
    wrong = Flaky(1, ValueError("bad call"))
    with pytest.raises(ValueError, match="bad call"):
        score(wrong)
    assert wrong.attempts == 1


def test_a_fault_of_the_model_is_tried_a_few_times():
    broken = Flaky(10**9, TransportError("model raised", most_attempts=3))
    with pytest.raises(RewardUnavailableError, match="3 attempts at 3 samples failed: model raised") as failed:
        score(broken)
    assert not isinstance(failed.value, RewardAwayError)  # which a trainer would wait for
    assert broken.attempts == 3


def test_the_deadline_bounds_all_attempts():
    with pytest.raises(RewardAwayError, match=r"within 0\.05 s .*replica died"):
        score(Flaky(10**9, TransportError("replica died")), 0.05)


def test_the_deadline_bounds_one_attempt_too():
    started = time.monotonic()
    with pytest.raises(RewardUnavailableError, match=r"within 0\.05 s and 1 attempts"):
        score(Hangs(), 0.05)
    assert time.monotonic() - started < 5


def test_the_pause_that_a_service_asks_for_is_kept():
    started = time.monotonic()
    score(Flaky(1, TransportError("queue full", retry_after_s=0.2)))
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"reward": None}, "its reward has shape None"),
        ({"reward": np.ones(2, np.float32)}, r"its reward has shape \[2\], not \[3\]"),
        ({"scores": {"clip": np.ones(4, np.float32)}}, "its score clip has shape"),
        ({"gradient": np.ones((3, 1, 8, 4), np.float32)}, "its gradient has shape"),
    ],
)
def test_what_was_not_answered_is_no_number(reply, message):
    full = {"gradient": np.ones_like(X)} | reply
    with pytest.raises(NonFiniteError, match=message):
        score(Flaky(0, None, **full), gradient=True, on_nonfinite="drop")


def test_the_service_is_the_one_that_was_expected():
    def check(names, held_out=(), rows=4, **changes):
        return asyncio.run(client_of(Described(**changes), 0.2).check(names, list(held_out), rows, gradient=True))

    assert check(["a", "watch"], ["watch"]).name == "shared"
    with pytest.raises(RewardUnavailableError, match=r"whether it is well .*not finite"):
        check(["a"], ill=True)
    with pytest.raises(UserError, match="serves a, watch, but not b"):
        check(["b"])
    with pytest.raises(UserError, match="do not agree whether watch is held out"):
        check(["watch"])
    flat = [model.model_copy(update={"differentiable": False}) for model in Described().record.models]
    with pytest.raises(UserError, match="has a in its sum, which has no gradient"):
        check(["a"], models=flat)
    with pytest.raises(UserError, match="takes no latents"):
        check(["a"], latent_channels=None)
    with pytest.raises(UserError, match="takes 8 rows a call, this run sends 9"):
        check(["a"], rows=9)


def test_several_urls_must_serve_the_same_and_those_that_are_away_do_not_count(monkeypatch):
    records = {"http://a": Described().record, "http://b": Described().record, "http://gone": None}

    async def request(self, method, url, path, body):
        if records[url] is None:
            raise TransportError("refused")
        return records[url].model_dump_json().encode()

    monkeypatch.setattr(HttpTransport, "_request", request)
    assert asyncio.run(http("http://gone", "http://a", "http://b").describe()).name == "shared"
    records["http://b"] = Described(models=Described().record.models[:1]).record
    with pytest.raises(UserError, match="http://a and http://b do not serve the same"):
        asyncio.run(http("http://a", "http://b").describe())
    records["http://b"] = Described(latent_channels=None).record
    with pytest.raises(UserError, match="http://a and http://b do not serve the same"):
        asyncio.run(http("http://a", "http://b").describe())
    with pytest.raises(TransportError, match="refused"):
        asyncio.run(http("http://gone").describe())


def test_one_url_after_the_other_is_tried(monkeypatch):
    asked = []

    async def score(self, *_):
        url = self._choose()
        asked.append(url)
        if url == "http://gone":
            raise TransportError("refused")
        return {"reward": np.ones(3, np.float32), "scores": {}, "gradient": None}

    monkeypatch.setattr(HttpTransport, "score", score)
    assert asyncio.run(client_of(http("http://gone", "http://a"), 30.0).score(X, PROMPTS, False))
    assert asked == ["http://gone", "http://a"]


async def answering(reply, healthy=False, after=None):
    """A server on loopback that answers every request with these bytes, or never for None; its URL.

    healthy: asked for its health it answers. after: what a call waits for.
    """

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        if healthy and b"/healthz" in head:
            writer.write(whole("200 OK", ""))
            after.set()
        elif reply is None:
            await reader.read()  # until the caller leaves
        else:
            if after:
                await after.wait()
            writer.write(reply)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def asked(replies, ask, **how):
    async def run():
        servers = [await answering(reply, **{name: make() for name, make in how.items()}) for reply in replies]
        transport = http(*(url for _, url in servers))
        try:
            return await ask(transport)
        finally:
            await transport.close()
            for server, _ in servers:
                server.close()

    return asyncio.run(run())


def whole(status, body):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


SAID = whole("422 No", '{"error": {"code": "invalid", "message": "reached"}}')


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(by_http, "SILENCE_S", 0.05)
    monkeypatch.setattr(by_http, "ANSWER_S", 0.2)


@pytest.mark.parametrize("calls", [1, 2, 7])
def test_one_that_gives_no_sign_of_life_is_left_for_another(impatient, calls):
    async def ask(transport):
        client = client_of(transport, 20.0)
        return await asyncio.gather(*(client.score(X, PROMPTS, False) for _ in range(calls)), return_exceptions=True)

    replies = asked([None, SAID], ask)
    assert len(replies) == calls and all(isinstance(reply, CallError) and "reached" in str(reply) for reply in replies)


def test_one_that_is_slow_and_alive_is_waited_for(impatient):
    with pytest.raises(CallError, match="reached"):  # it answers once it has been asked for its health
        asked(
            [SAID],
            lambda transport: client_of(transport, 20.0).score(X, PROMPTS, False),
            healthy=lambda: True,
            after=asyncio.Event,
        )


def test_serve_without_the_application_is_come_back_to_and_another_server_is_not():
    absent = whole("404 Not Found", "Path '/v1/models' not found. Ping http://.../-/routes for available routes.")
    with pytest.raises(TransportError, match="no reward service there now"):
        asked([absent], lambda transport: transport.describe())
    with pytest.raises(UserError, match=r"correct reward\.urls, it is no reward service"):
        asked([whole("404 Not Found", "nothing")], lambda transport: transport.describe())


def test_what_no_service_could_take_is_said_before_it_is_asked():
    with pytest.raises(UserError, match="space 'image': write latents or images"):
        RewardClient(None, 1.0, on_nonfinite="raise", space="image", trainer="me")
    with pytest.raises(UserError, match="trainer 'my run!'"):
        RewardClient(None, 1.0, on_nonfinite="raise", space="images", trainer="my run!")
    with pytest.raises(UserError, match="dtype 'bf16' of the wire: write fp32 or fp16"):
        HttpTransport(["http://a"], None, "bf16", OF_CALLER)
    with pytest.raises(CallError, match="prompts is one text"):
        asyncio.run(client_of(Flaky(0, None), 1.0).score(X, "abc", False))


NAMED = Named("U", "T")


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda: HttpTransport([], None, "fp32", NAMED), "^U is empty"),
        (lambda: HttpTransport(["a:1"], None, "fp32", NAMED), "^U: 'a:1' is no URL"),
        (lambda: asked_as(NAMED, whole("404 Not Found", "nothing")), "correct U, it is no reward service"),
        (lambda: asked_as(NAMED, whole("401 Unauthorized", "who?")), "or from T"),
        (lambda: asked_as(NAMED, whole("200 OK", "{}")), "correct U, or bring both to one version"),
    ],
)
def test_a_person_is_told_of_their_own_names(ask, sentence):
    with pytest.raises(UserError, match=sentence):
        ask()


def test_a_runs_and_a_callers_names():
    assert (Named("reward.urls", "reward.token"), Named("url", "token")) == (OF_RUN, OF_CALLER)


def asked_as(named, reply):
    return asked([reply], lambda transport: HttpTransport(transport._urls, None, "fp32", named).describe())
