"""Every refusal by HTTP has its status, its code, and a message that says what to do."""

import asyncio
import json
import zlib

import numpy as np
import pytest
from http_calls import (
    BRIGHT,
    LOOPBACK,
    TEXTS,
    TOKEN,
    ask,
    ask_json,
    client,
    encoded,
    images,
    latents,
    made,
    packed,
    picture,
    pixels,
    refused,
    settled,
    together,
    with_tokens,
)

from dipp_ray.serving.contract.records import JSON, REQUEST, SAFETENSORS, ErrorReply, HealthRecord, ScoreOptions
from dipp_ray.serving.contract.wire import pack, tensor_record
from dipp_ray.serving.http.app import build_http


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no safetensors"),
        (packed(images())[:100], "cut off"),
        (packed(images())[:-1], "must fill the body"),
        (packed(images()) + b"\0", "follow the last tensor"),
        ((2**63).to_bytes(8, "little") + b"{}", "at most 4096 are read"),
        (pack({"x": images()}, "other", ScoreOptions(prompts=TEXTS)), "has no 'request'"),
        (pack({"y": images()}, REQUEST, ScoreOptions(prompts=TEXTS)), "one tensor named x"),
        (pack({"x": images(), "y": images()}, REQUEST, ScoreOptions(prompts=TEXTS)), "one tensor named x"),
        (pack({}, REQUEST, ScoreOptions(prompts=TEXTS)), "one tensor named x"),
    ],
)
def test_400_a_body_that_is_no_call(small, body, message):
    refused(ask(small, body), 400, message, "malformed")


def test_400_a_name_that_no_reply_can_hold(small):
    """JSON may name a tensor by half a surrogate pair: the refusal must not fail at saying so."""
    header = b'{"\\ud800": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}'
    refused(ask(small, len(header).to_bytes(8, "little") + header + bytes(8)), 400, "known are F32")
    header = b'{"__metadata__": {"request": "\\ud800"}, "x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
    refused(ask(small, len(header).to_bytes(8, "little") + header + b"a"), 400, "no JSON")


def test_400_a_caller_who_leaves_while_its_body_comes(small, caplog):
    """Nobody reads the reply; what counts is that it is no failure of the service."""
    sent = []

    async def run():
        parts = iter([{"type": "http.request", "body": b"abc", "more_body": True}, {"type": "http.disconnect"}])

        async def receive():
            return next(parts)

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", SAFETENSORS.encode())]
        await small.app(scope(headers), receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 400 and not caplog.records


def scope(headers, path="/v1/score"):
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
        "client": LOOPBACK, "server": ("127.0.0.1", 80),
    }  # fmt: skip


def test_408_a_body_that_does_not_come_in_time_leaves_its_room():
    app = build_http(made(limits={"upload_s": 0.05}))
    sent = []

    async def receive():
        if not sent:
            return await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    async def run():
        for _ in range(40):  # more than the room of all bodies together holds
            sent.clear()
            await app(scope([(b"content-type", SAFETENSORS.encode()), (b"content-length", b"60000000")]), receive, send)
            assert sent[0]["status"] == 408, sent

    asyncio.run(run())
    assert ErrorReply.model_validate_json(sent[1]["body"]).error.code == "too_slow"


@pytest.mark.parametrize("path", ["/v1/score", "/v1/models", "/metrics"])
def test_401_without_a_token_of_the_service(path):
    with client(with_tokens(ann=TOKEN), host=("10.1.2.3", 5)) as opened:
        for value in (None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer äöü"):
            headers = {} if value is None else {"authorization": value.encode("latin-1")}
            reply = ask(opened, packed(images()), **headers) if "score" in path else opened.get(path, headers=headers)
            error = refused(reply, 401, code="unauthorised")
            assert reply.headers["www-authenticate"] == "Bearer" and TOKEN not in error.message
        for value in (f"Bearer {TOKEN}", f"bearer  {TOKEN} "):
            headers = {"authorization": value}
            reply = ask(opened, packed(images()), **headers) if "score" in path else opened.get(path, headers=headers)
            assert reply.status_code == 200


def test_401_comes_before_the_body_is_read():
    sent, taken = sent_raw(build_http(with_tokens(ann=TOKEN)))
    assert sent[0]["status"] == 401 and taken == 0


@pytest.mark.parametrize("path", ["/v1/score", "/v1/models", "/metrics"])
@pytest.mark.parametrize("host", ["10.1.2.3", "::ffff:10.1.2.3", "testclient", "127.0.0.1.example.org", ""])
def test_403_without_tokens_another_machine_is_refused(path, host):
    opened = client(made(), host=(host, 5))
    reply = ask(opened, packed(images())) if "score" in path else opened.get(path)
    refused(reply, 403, "same machine", "no_tokens")


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
def test_403_without_tokens_a_proxy_calls_for_somebody_else(small, header):
    refused(ask(small, packed(images()), **{header: "127.0.0.1"}), 403, "same machine", "no_tokens")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1"])
def test_without_tokens_this_machine_is_answered(host):
    assert ask(client(made(), host=(host, 5)), packed(images())).status_code == 200


def test_404_and_405_name_what_is_there(small):
    for path in ("/", "/v1/nothing", "/v1/score/more", "/redoc", "/..%2f..%2fetc/passwd"):
        refused(small.get(path), 404, "see /docs", "no_route")
    for method, path in (("GET", "/v1/score"), ("DELETE", "/v1/score"), ("POST", "/healthz"), ("PUT", "/metrics")):
        reply = small.request(method, path)
        refused(reply, 405, "see /docs")
        assert reply.headers["allow"] in ("GET", "POST")


def sent_raw(app, *headers, parts=20):
    """(the messages of the reply, how many parts of 32 KiB of the body were taken) for a body of 20 parts."""
    taken, sent = [], []

    async def receive():
        taken.append(1)
        return {"type": "http.request", "body": bytes(2**15), "more_body": len(taken) < parts}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope([(b"content-type", SAFETENSORS.encode()), *headers]), receive, send))
    return sent, len(taken)


def test_413_a_body_that_says_itself_that_it_is_too_long_is_not_read(small):
    for length in (b"131073", b"9" * 40):
        sent, taken = sent_raw(small.app, (b"content-length", length))
        assert sent[0]["status"] == 413 and taken == 0 and (b"connection", b"close") in sent[0]["headers"]
        assert ErrorReply.model_validate_json(sent[1]["body"]).error.code == "too_long"
    refused(ask(small, bytes(131073)), 413, "longer than 0.125 MiB: send fewer rows", "too_long")
    refused(ask(small, bytes(131073), JSON), 413, "send fewer rows")
    refused(ask(small, bytes(131072)), 400, "at most|header is not JSON")  # just not too long


def test_413_however_its_length_is_written_and_whatever_may_wait():
    app = build_http(made(limits={"body_mib": 1}, queue={"mib": 1}))
    for length in (b"0" * 20 + b"67108864", b"9" * 40, b"1048577"):
        sent, taken = sent_raw(app, (b"content-length", length))
        assert sent[0]["status"] == 413 and taken == 0


def test_413_a_body_that_does_not_say_its_length_is_read_no_further_than_the_limit(small):
    """Nor one that lies about it."""
    for headers in ([], [(b"content-length", b"10")], [(b"content-length", b"\xb2")], [(b"content-length", b"-1")]):
        sent, taken = sent_raw(small.app, *headers)
        assert sent[0]["status"] == 413 and taken == 5  # 4 are just the limit
        assert ErrorReply.model_validate_json(sent[1]["body"]).error.code == "too_long"


def test_415_other_types_and_encodings(small):
    for kind in ("text/plain", "application/octet-stream", "multipart/form-data; boundary=x", "", "application/jsonx"):
        refused(ask(small, packed(images()), kind), 415, "application/x-safetensors or application/json", "media_type")
    for encoding in ("gzip", "br", "identity, gzip"):
        reply = ask(small, zlib.compress(packed(images())), **{"content-encoding": encoding})
        refused(reply, 415, "without content-encoding", "encoding")
    reply = small.post("/v1/score", content=b"")
    refused(reply, 415)


def test_a_type_may_have_parameters(small):
    assert ask(small, packed(images()), SAFETENSORS.upper() + " ; a=b").status_code == 200
    assert ask(small, packed(images()), **{"content-encoding": "Identity"}).status_code == 200
    call = picture(encoded(pixels(1)[0]))
    assert ask(small, json.dumps(call), JSON + "; charset=utf-8").status_code == 200


@pytest.mark.parametrize(
    ("x", "prompts", "options", "message"),
    [
        (images(9), ["a"] * 9, {}, "9 prompts were sent: at most 8 rows"),
        (images(), ["a"] * 2, {}, "3 images but 2 prompts"),
        (images(1), ["a"] * 9, {}, "9 prompts were sent: at most 8 rows"),
        (np.zeros((1, 3, 1, 65), np.uint8), ["a"], {}, "1 x 65 were sent: at most 64 a side"),
        (np.zeros((1, 3, 65, 1), np.uint8), ["a"], {}, "65 x 1 were sent: at most 64 a side"),
        (images(1), ["x" * 101], {}, "prompt of 101 characters"),
        (images(1)[:, :1], ["a"], {}, r"expected \[B, 3"),
        (images(1)[0], ["a"], {}, r"expected \[B, 3"),
        (images(1).transpose(0, 2, 3, 1), ["a"], {}, r"expected \[B, 3"),
        (np.zeros((1,) * 8, np.float32), ["a"], {}, r"expected \[B, 3"),
        (latents(1), ["a"], {"space": "latents"}, "no VAE"),
        (pixels(1), ["a"], {"space": "latents"}, "send fp32 or fp16"),
        (images(1) * np.nan, ["a"], {}, "not finite"),
        (images(1) * np.inf, ["a"], {}, "not finite"),
        (np.full((1, 3, 4, 4), np.inf, np.float16), ["a"], {}, "not finite"),
    ],
)
def test_422_a_call_that_cannot_be_answered(small, x, prompts, options, message):
    refused(ask(small, packed(x, prompts, **options)), 422, message, "invalid")
    if x.dtype == np.float32:
        call = {"prompts": prompts, "x": tensor_record(x).model_dump()} | options
        refused(ask_json(small, **call), 422, f"{message}|at most 8 rows")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("[1]", "the record is no JSON object"),
        ("{}", "prompts: Field required"),
        ('{"prompts": []}', "prompts: "),
        ('{"prompts": ["a"], "space": "pixels"}', "space: .*'latents' or 'images'"),
        ('{"prompts": ["a"], "deadline_s": 1e999}', "deadline_s: "),
        ('{"prompts": ["a"], "deadline_s": -1}', "deadline_s: "),
        ('{"prompts": ["a"], "trainer": "a b"}', "trainer: "),
        ('{"prompts": ["a"], "reply_dtype": "bf16"}', "reply_dtype: "),
        ('{"prompts": ["a"], "%s": 1}' % ("y" * 3000), "unknown key 'y+'"),
        ('{"prompt": ["a"]}', "unknown key 'prompt' in the top level: did you mean prompts"),
    ],
)
def test_422_options_that_are_none(small, options, message):
    refused(ask(small, options, JSON), 422, message, "invalid")
    text = json.dumps({"__metadata__": {REQUEST: options}, "x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})
    refused(ask(small, len(text).to_bytes(8, "little") + text.encode() + b"a"), 422, message, "invalid")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompts": [1] * 10**5}, "100000 prompts were sent: at most 8 rows"),
        ({"prompts": ["a"], "images": [1] * 10**5}, "100000 images were sent: at most 8 rows"),
        ({"prompts": ["a"], "y": [1] * 10**4}, "more values than any call"),
        ({"prompts": ["a"]} | {f"y{i}": 1 for i in range(10)}, "unknown key 'y0'"),
        ({"prompts": ["a"], "x": {f"y{i}": 1 for i in range(10)}}, "unknown key 'y0' in x"),
        ({"prompts": ["a"]} | {f"y{i}": 1 for i in range(100)}, "more values than any call"),
        ({"prompts": ["a"], "x": [{}] * 100}, "more values than any call"),
        ({"prompts": ["a"], "images": ["a"] * 100}, "more values than any call"),
        ({"prompts": ["a"], "x": {"data": '"' * 10**6}}, "more values than any call"),
        ({"prompts": ["a"], "x": {"shape": [1] * 1000}}, "x.shape has 1000 axes"),
        ({"prompts": ["a"], "x": 3}, "x: "),
    ],
)
def test_422_a_record_of_many_values_is_refused_before_each_is_an_error(call, message):
    with client(made(limits={"rows": 8, "prompt_chars": 100 if "y" in call else 10**5})) as opened:
        refused(ask_json(opened, **call), 422, message, "invalid")


def test_422_a_picture_that_is_far_longer_than_wide(small):
    refused(ask(small, packed(np.zeros((1, 3, 4, 33), np.float32), ["a"])), 422, "at most 8 times the other")
    assert ask(small, packed(np.zeros((1, 3, 4, 32), np.float32), ["a"])).status_code == 200


@pytest.mark.parametrize("options", ["", "[" * 3000, '{"prompts": ["a"'])
def test_400_a_record_that_is_no_json(small, options):
    refused(ask(small, options, JSON), 400, "the record is no JSON", "malformed")


def test_422_a_prompt_that_a_model_refuses():
    with client(made([{"name": "picky", "model": "tiny_models:Picky"}])) as opened:
        refused(ask(opened, packed(images(1), ["refuse"])), 422, "refuse is no prompt", "model_refused")


def test_422_a_score_that_does_not_depend_on_the_images_and_nothing_of_the_inside():
    with client(made([{"name": "flat", "model": "tiny_models:NoGradient"}])) as opened:
        refused(
            ask(opened, packed(images(), gradient=True)), 422, "reward 'flat': it has no gradient, for its score does"
        )


def test_500_a_model_that_fails_says_which_and_nothing_of_the_inside():
    with client(made([BRIGHT, {"name": "broken", "model": "tiny_models:Raises"}])) as opened:
        refused(ask(opened, packed(images())), 500, "^reward 'broken': ", "model_failed")
        refused(ask_json(opened, prompts=TEXTS, x=tensor_record(images()).model_dump()), 500, "broken", "model_failed")


def test_500_a_bug_is_logged_and_its_caller_is_told_nothing(caplog):
    service = made()

    async def bug(*_):
        raise KeyError("secret of the inside")

    service.answer = bug
    error = refused(ask(client(service), packed(images())), 500, code="internal")
    assert "secret" not in error.message and "secret of the inside" in caplog.text


def test_429_beyond_its_bound_a_trainer_is_told_when_to_come_again():
    service = made(limits={"rows": 8}, queue={"rows": 8}, deterministic=True)

    async def run():
        gate = service.handles["bright"].gate = asyncio.Event()
        async with together(service) as web:
            body = packed(images(8), ["a"] * 8)
            taken = [asyncio.create_task(web.post("/v1/score", content=body)) for _ in range(3)]
            await settled(lambda: len(service._scheduler.queue) == 8)  # 2 batches are with the model
            reply = await web.post("/v1/score", content=body)
            refused(reply, 429, "8 rows waiting of at most 8", "trainer_full")
            assert 1 <= int(reply.headers["retry-after"]) <= 60
            other = asyncio.create_task(web.post("/v1/score", content=packed(images(1), ["a"], trainer="other")))
            gate.set()
            assert [(await task).status_code for task in (*taken, other)] == [200] * 4

    asyncio.run(run())


def test_503_a_service_that_stops_sends_callers_elsewhere():
    service = made()

    async def run():
        assert await service.drain(1.0) == 0
        async with together(service) as web:
            reply = await web.post("/v1/score", content=packed(images()))
            refused(reply, 503, "being stopped", "stopping")
            assert int(reply.headers["retry-after"]) >= 1
            health = await web.get("/healthz")
            assert health.status_code == 503 and not HealthRecord.model_validate_json(health.content).ok

    asyncio.run(run())


def test_503_a_model_whose_replicas_are_lost(monkeypatch):
    from ray.exceptions import ActorDiedError

    from dipp_ray.serving.core import attempts

    monkeypatch.setattr(attempts, "PAUSE_S", 0.0)
    service = made()

    async def lost(*_):
        raise ActorDiedError()

    service.handles["bright"]._answer = lost
    reply = ask(client(service), packed(images()))
    refused(reply, 503, "lost 3 replicas", "model_lost")
    assert reply.headers["retry-after"] == "1"


def test_504_past_the_deadline_that_the_caller_gave():
    service = made()

    async def run():
        service.handles["bright"].gate = asyncio.Event()
        async with together(service) as web:
            refused(
                await web.post("/v1/score", content=packed(images(), deadline_s=0.02)),
                504,
                "in time|within",
                "too_late",
            )

    asyncio.run(run())
    assert len(service._scheduler.queue) == 0 and service._open == 0
