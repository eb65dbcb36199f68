"""Whatever comes over HTTP gets a documented answer, with nothing of the inside in it, and leaves nothing behind."""

import base64
import gc
import hashlib
import json
import random
import re
import tracemalloc

import numpy as np
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_service import local_service
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from dipp_ray.serving.contract.records import (
    JSON,
    REPLY,
    REQUEST,
    SAFETENSORS,
    ErrorReply,
    JsonReply,
    ReplyRecord,
    ScoreOptions,
)
from dipp_ray.serving.contract.wire import pack, tensor_record, unpack
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.serving.http.app import build_http

TOKEN = "correct-horse-battery"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
LIMITS = {"body_mib": 4, "header_kib": 16, "rows": 8, "image_side": 64, "prompt_chars": 100}
MIB = 2**20
INSIDE = re.compile(rb"Traceback|File \"|\.py\b|site-packages|line \d+, in")
bounded = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def service():
    models = [{"name": "bright", "model": "tiny_models:Brightness", "weight": 5.0}]
    made = local_service(ServiceConfig.model_validate({"models": models, "batch_rows": 4, "limits": LIMITS}))
    made.tokens = {hashlib.sha256(TOKEN.encode()).hexdigest(): "fuzz"}
    return made


@pytest.fixture(scope="module")
def web(service):
    with TestClient(build_http(service), raise_server_exceptions=False, headers=HEADERS) as opened:
        yield opened


def idle(service):
    scheduler = service._scheduler
    return (scheduler.queue.bytes, len(scheduler.queue), scheduler.in_flight, service._open) == (0, 0, 0, 0)


# -- from the OpenAPI document -----------------------------------------------------------------------------------------


@schemathesis.serializer(SAFETENSORS)
def as_it_is(context, value):
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def documented(service):
    return schemathesis.openapi.from_asgi("/openapi.json", build_http(service))


def conforms(documented, method, path, mode, examples):
    """Every answer has a documented status, type, form and headers, and what the document forbids is refused."""

    @settings(bounded, max_examples=examples)
    @given(documented[path][method].as_strategy(generation_mode=mode))
    def every(case):
        # Base64, and that a file is a picture, no schema says: what fits the schema may still be refused.
        reply = case.call_and_validate(headers=HEADERS, excluded_checks=[positive_data_acceptance])
        assert not INSIDE.search(reply.content)

    every()


BOTH = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
ROUTES = [
    *[(mode, "POST", "/v1/score") for mode in BOTH],
    *[(mode, "GET", path) for path in ("/v1/models", "/metrics") for mode in BOTH],
    (GenerationMode.POSITIVE, "GET", "/healthz"),  # it takes nothing, not even a token, that could be wrong
]


@pytest.mark.parametrize(("mode", "method", "path"), ROUTES)
def test_the_service_does_what_its_document_says(documented, service, mode, method, path):
    conforms(documented, method, path, mode, 15 if method == "POST" else 3)
    assert idle(service)


@pytest.mark.slow
@pytest.mark.parametrize("mode", BOTH)
def test_the_service_does_what_its_document_says_many_times(documented, service, mode):
    conforms(documented, "POST", "/v1/score", mode, 600)
    assert idle(service)


# -- bodies ------------------------------------------------------------------------------------------------------------


def documented_statuses(web):
    return {int(code) for code in web.get("/openapi.json").json()["paths"]["/v1/score"]["post"]["responses"]}


def answered(web, known, body, kind, most=499):
    """The reply to a body: well-formed, documented, at most of status `most`."""
    reply = web.post("/v1/score", content=body, headers={"content-type": kind})
    assert reply.status_code in known and reply.status_code <= most, reply.text
    assert not INSIDE.search(reply.content)
    if reply.status_code != 200:
        assert reply.headers["content-type"] == JSON and len(reply.content) < 1000
        assert ErrorReply.model_validate_json(reply.content).error.message
    elif kind == JSON:
        JsonReply.model_validate_json(reply.content)
    else:
        ReplyRecord.model_validate_json(unpack(reply.content, MIB)[1][REPLY])
    return reply


def images(rows=2, side=8):
    return np.random.default_rng(0).random((rows, 3, side, side), dtype=np.float32)


def whole(x=None, **options):
    x = images() if x is None else x
    return pack({"x": x}, REQUEST, ScoreOptions(**{"prompts": ["a"] * len(x), "gradient": True} | options))


def with_header(header, content):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


CONTENT = images().tobytes()
METADATA = {REQUEST: ScoreOptions(prompts=["a", "b"]).model_dump_json()}
SIZE = st.integers(0, 8) | st.sampled_from([-1, 2**16, 2**31, 2**40, 2**47, 2**62, 2**63, 2**64, True, 1.5, None, "2"])
OFFSET = st.sampled_from([0, 1, 4, len(CONTENT) // 2, len(CONTENT) - 1, len(CONTENT), len(CONTENT) + 1]) | SIZE


@st.composite
def lies(draw):
    """A header that says something else than what follows: one property, or all of them."""
    entry = {"dtype": "F32", "shape": [2, 3, 8, 8], "data_offsets": [0, len(CONTENT)]}
    changes = {
        "dtype": st.sampled_from(["F16", "U8", "F64", "BF16", "I64", "f32", "", None, 4]),
        "shape": st.lists(SIZE, max_size=9) | st.permutations([2, 3, 8, 8]),
        "data_offsets": st.tuples(OFFSET, OFFSET).map(list),
    }
    for name in draw(st.sets(st.sampled_from(sorted(changes)), min_size=1)):
        entry[name] = draw(changes[name])
    header = {"__metadata__": METADATA, "x": entry}
    if draw(st.booleans()):
        header[draw(st.sampled_from(["y", "", "scores/a", "\ud800"]))] = dict(entry)
    return with_header(header, CONTENT[: draw(st.sampled_from([None, -4, 100, 0]))])


@st.composite
def damaged(draw):
    body = bytearray(whole())
    header = 8 + int.from_bytes(body[:8], "little")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, header) | st.integers(0, len(body)))
        match draw(st.sampled_from(["change", "cut", "put in", "length"])):
            case "change":
                body[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
            case "cut":
                del body[at:]
            case "put in":
                body[at:at] = draw(st.binary(max_size=8) | st.sampled_from([b"[" * 900, b'"', b"}", b"9" * 5000]))
            case "length":
                body[:8] = draw(st.integers(0, 2**64 - 1) | st.integers(0, len(body))).to_bytes(8, "little")
    return bytes(body)


@st.composite
def spoilt(draw):
    """A good header before values that are none."""
    x = images()
    for _ in range(draw(st.integers(1, 3))):
        x.flat[draw(st.integers(0, x.size - 1))] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    return whole(x.astype(draw(st.sampled_from([np.float32, np.float16]))))


PNG = base64.b64encode(Image.fromarray(np.zeros((8, 8, 3), np.uint8))._repr_png_()).decode()
PICTURE = st.just(PNG) | st.text(max_size=8) | st.binary(max_size=64).map(lambda data: base64.b64encode(data).decode())
TENSOR = st.builds(
    lambda data, change: tensor_record(data).model_dump() | change,
    st.sampled_from([images(), images(1), images()[:, :1], images()[0]]),
    st.just({}) | st.fixed_dictionaries({"dtype": st.sampled_from(["fp16", "uint8", "fp64"])})
    | st.fixed_dictionaries({"shape": st.lists(st.integers(-1, 8) | st.just(2**31), max_size=5)})
    | st.fixed_dictionaries({"data": st.text(max_size=8)}),
)  # fmt: skip
CALL = st.fixed_dictionaries(
    {"prompts": st.sampled_from([["a"], ["a", "b"], ["a"] * 9, ["x" * 101, "b"], [], [""], [None]])},
    optional={
        "images": st.lists(PICTURE, max_size=3),
        "x": TENSOR,
        "space": st.sampled_from(["images", "latents", "pixels"]),
        "gradient": st.booleans(),
        "deadline_s": st.floats() | st.just(60),
        "trainer": st.text(max_size=4),
        "unknown": st.none(),
    },
)


def every_body_is_answered(web, examples):
    known = documented_statuses(web)

    @settings(bounded, max_examples=examples)
    @given(lies() | damaged())
    def a_damaged_body(body):
        answered(web, known, body, SAFETENSORS)

    @settings(bounded, max_examples=examples // 4)
    @given(spoilt())
    def values_that_are_none(body):
        assert answered(web, known, body, SAFETENSORS).status_code == 422

    @settings(bounded, max_examples=examples)
    @given(CALL)
    def almost_a_call(call):
        answered(web, known, json.dumps(call), JSON, 504)  # a deadline may be as short as it likes

    for test in (a_damaged_body, values_that_are_none, almost_a_call):
        test()


def test_a_bad_body_gets_a_documented_refusal(web, service):
    every_body_is_answered(web, 40)
    assert answered(web, {200}, whole(), SAFETENSORS).status_code == 200
    assert idle(service)


@pytest.mark.slow
def test_many_bad_bodies_get_a_documented_refusal(web, service):
    every_body_is_answered(web, 1500)
    assert idle(service)


# -- memory ------------------------------------------------------------------------------------------------------------


def large(size):
    """Fresh bytes, so that who keeps them is seen to."""
    return random.Random(size).randbytes(64) + bytes(range(256)) * (size // 256)


def refusals():
    """Bodies that are refused, of up to 6 MiB where 4 are taken: (content, type, status)."""
    text = "x" * (3 * MIB)
    entry = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}
    yield large(6 * MIB), SAFETENSORS, 413
    yield iter([large(2 * MIB)] * 3), SAFETENSORS, 413  # does not say its length
    yield large(3 * MIB), SAFETENSORS, 400
    yield (2**63).to_bytes(8, "little") + large(3 * MIB), SAFETENSORS, 400
    yield with_header({"x": entry}, large(3 * MIB)), SAFETENSORS, 400
    yield whole(images(8, 128)), SAFETENSORS, 422  # too wide
    yield whole(images(8, 64) * np.nan), SAFETENSORS, 422
    yield json.dumps({"prompts": [text], "images": [PNG]}), JSON, 422
    yield json.dumps({"prompts": ["a"], text: 1}), JSON, 422
    yield json.dumps({"prompts": ["a"], "images": [base64.b64encode(large(2 * MIB)).decode()]}), JSON, 400
    yield json.dumps({"prompts": ["a"], "x": {"dtype": "fp32", "shape": [2**31] * 8, "data": text}}), JSON, 400
    yield "[" * MIB, JSON, 400
    yield whole(trainer="a")[:-1], SAFETENSORS, 400
    yield large(2 * MIB), "text/plain", 415


def rounds(web, count):
    sent = 0
    for _ in range(count):
        for content, kind, status in refusals():
            reply = web.post("/v1/score", content=content, headers={"content-type": kind})
            assert reply.status_code == status, (kind, reply.text)
            sent += 1
    return sent


def resident():
    gc.collect()
    return psutil.Process().memory_info().rss


def nothing_is_left(web, service, count, most):
    rounds(web, 4)
    before = resident()
    sent = rounds(web, count)
    assert resident() - before < most, f"{(resident() - before) / MIB:.1f} MiB more after {sent} refused calls"
    assert idle(service) and answered(web, {200}, whole(), SAFETENSORS)
    return sent


def test_refused_calls_leave_no_memory_behind(web, service):
    """Some hundred MiB are sent; 32 MiB are left for what the allocator keeps."""
    assert nothing_is_left(web, service, 11, 32 * MIB) > 150


@pytest.mark.slow
def test_many_refused_calls_leave_no_memory_behind(web, service):
    nothing_is_left(web, service, 100, 32 * MIB)


def test_a_refused_call_holds_no_more_than_a_few_bodies(web):
    """Whatever it claims, and whatever its files would decode to: here 600 MiB, where a body has 4."""
    models = [{"name": "bright", "model": "tiny_models:Brightness"}]
    limits = {"body_mib": 4}
    wide = local_service(ServiceConfig.model_validate({"models": models, "limits": limits}))
    flat = base64.b64encode(Image.new("RGB", (1024, 1024))._repr_png_()).decode()
    call = json.dumps({"prompts": ["a"] * 200, "images": [flat] * 200})
    with TestClient(build_http(wide), client=("127.0.0.1", 1)) as opened:
        tracemalloc.start()
        rounds(web, 1)
        reply = opened.post("/v1/score", content=call, headers={"content-type": JSON})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert reply.status_code == 422 and "600.0 MiB of pixels" in reply.text
    assert peak < 12 * 4 * MIB
