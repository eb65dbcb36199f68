"""The routes in front of an ingress in this process: what is answered is what the models say, and every refusal."""

import asyncio
import base64
import hashlib
import io
import json
import re
import struct
import zlib
from html.parser import HTMLParser

import httpx2
import numpy as np
import pytest
import torch
from local_service import local_service
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from dipp_ray.errors import UserError
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.serving.calls import ModelError
from dipp_ray.serving.config import ServiceConfig
from dipp_ray.serving.http import Uploads, build_http
from dipp_ray.serving.queue import QueueFull
from dipp_ray.serving.scoring import Scorer
from dipp_ray.serving.tokens import VARIABLE, Tokens, read_tokens
from dipp_ray.serving.wire import (
    JSON,
    REPLY,
    REQUEST,
    SAFETENSORS,
    ErrorReply,
    HealthRecord,
    JsonReply,
    ReplyRecord,
    ScoreOptions,
    ServiceRecord,
    from_half,
    pack,
    tensor_of,
    tensor_record,
    unpack,
)
from tiny_models import PROMPTS, save_clip, save_pipeline

CHUNK = 8
LOOPBACK = ("127.0.0.1", 40000)
TEXTS = PROMPTS[:3]
HALF = 2.0**-11  # fp16's relative rounding
BRIGHT = {"name": "bright", "model": "tiny_models:Brightness", "weight": 5.0}
# What no caller may read: where the code lies, and how it came to fail.
INSIDE = re.compile(r"Traceback|File \"|\.py\b|site-packages|line \d+, in|0x[0-9a-f]{6,}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        "clip": save_clip(tmp_path_factory.mktemp("clip")),
        "vae": save_pipeline(tmp_path_factory.mktemp("pipeline")),
    }


@pytest.fixture(scope="module")
def full(folders):
    """clip and bright are the sum, watch is held out; latents and images; calls to the bit."""
    watch = {"name": "watch", "model": "tiny_models:NoGradient", "held_out": True}
    models = [{"name": "clip", "model": "clip", "folder": folders["clip"], "weight": 0.7}, BRIGHT, watch]
    return made(models, vae=folders["vae"], deterministic=True)


@pytest.fixture(scope="module")
def local(full, folders):
    return Scorer(list(full._terms), LatentDecoder.from_pipeline(folders["vae"]), CHUNK)


def made(models=(BRIGHT,), **settings):
    return local_service(ServiceConfig.model_validate({"models": list(models), "batch_rows": CHUNK} | settings))


def client(service, host=LOOPBACK, **settings):
    return TestClient(build_http(service), client=host, raise_server_exceptions=False, **settings)


@pytest.fixture(scope="module")
def web(full):
    with client(full) as opened:
        yield opened


@pytest.fixture(scope="module")
def small():
    """Narrow limits."""
    limits = {"body_mib": 0.125, "header_kib": 4, "rows": 8, "image_side": 64, "prompt_chars": 100}
    with client(made(limits=limits)) as opened:
        yield opened


def images(count=3, side=8, seed=0):
    return np.random.default_rng(seed).random((count, 3, side, side), dtype=np.float32)


def pixels(count=3, side=8):
    return np.random.default_rng(1).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def latents(count=3):
    return np.random.default_rng(2).standard_normal((count, 1, 8, 8), dtype=np.float32)


def packed(x, prompts=TEXTS, **options):
    return pack({"x": x}, REQUEST, ScoreOptions(prompts=prompts, **options))


def ask(opened, body, kind=SAFETENSORS, **headers):
    return opened.post("/v1/score", content=body, headers={"content-type": kind} | headers)


def ask_json(opened, **call):
    return ask(opened, json.dumps(call), JSON)


def tensors_of(reply):
    assert reply.status_code == 200 and reply.headers["content-type"] == SAFETENSORS, reply.text
    tensors, metadata = unpack(reply.content, 2**20)
    return tensors, ReplyRecord.model_validate_json(metadata[REPLY])


def refused(reply, status, message="", code=None):
    """The reply's error, which has the form of every other, and nothing of the inside."""
    assert (reply.status_code, reply.headers["content-type"]) == (status, JSON), reply.text
    error = ErrorReply.model_validate_json(reply.content).error
    assert re.search(message, error.message) and error.message and re.fullmatch("[a-z_]+", error.code), error
    assert not INSIDE.search(reply.text) and len(reply.text) < 1000 and (code is None or error.code == code), error
    return error


def same(tensors, expected):
    """To the bit."""
    assert np.array_equal(tensors["reward"], expected.reward.numpy())
    assert {name.removeprefix("scores/") for name in tensors if "/" in name} == expected.scores.keys()
    for name, score in expected.scores.items():
        assert np.array_equal(tensors[f"scores/{name}"], score.numpy())
    assert ("gradient" in tensors) == (expected.gradient is not None)
    if expected.gradient is not None:
        assert np.array_equal(tensors["gradient"], expected.gradient.numpy())


def encoded(array, kind="PNG", mode="RGB"):
    """uint8 [3, H, W] as a file, in base64."""
    file = io.BytesIO()
    Image.fromarray(array.transpose(1, 2, 0)).convert(mode).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def png(width, height, content=b"", bits=8, color=2):
    """A PNG file of one's own, in base64: its header may say what it likes."""

    def part(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", zlib.compress(content, 9)) + part(b"IEND", b"")
    return base64.b64encode(data).decode()


# -- remote equals in-process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize(("x", "space"), [(images(), "images"), (latents(), "latents")], ids=["images", "latents"])
def test_in_fp32_scores_and_gradients_equal_local_to_the_bit(web, local, x, space, gradient):
    tensors, record = tensors_of(ask(web, packed(x, space=space, gradient=gradient)))
    same(tensors, local.score(torch.from_numpy(x), TEXTS, space, gradient))
    assert record.held_out == ["watch"] and record.failed == {}


def test_a_call_of_several_chunks_equals_local_to_the_bit(web, local):
    x, texts = latents(19), [PROMPTS[i % 4] for i in range(19)]
    tensors, _ = tensors_of(ask(web, packed(x, texts, space="latents", gradient=True)))
    same(tensors, local.score(torch.from_numpy(x), texts))


def test_uint8_images_are_images_in_unit_range(web, local):
    x = pixels()
    tensors, _ = tensors_of(ask(web, packed(x, gradient=True)))
    same(tensors, local.score(torch.from_numpy(x.astype(np.float32) / 255), TEXTS, "images"))


@pytest.mark.parametrize(("x", "space"), [(images(), "images"), (latents(), "latents")], ids=["images", "latents"])
def test_in_fp16_the_gradient_comes_to_fp16s_rounding(web, local, x, space):
    half = x.astype(np.float16)
    tensors, _ = tensors_of(ask(web, packed(half, space=space, gradient=True, reply_dtype="fp16")))
    expected = local.score(torch.from_numpy(half.astype(np.float32)), TEXTS, space)
    assert tensors["gradient"].dtype == np.float16 and tensors["gradient_scale"].shape == (3,)
    back, exact = from_half(tensors.pop("gradient"), tensors["gradient_scale"]), expected.gradient.numpy()
    largest = np.abs(exact).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(back - exact) <= np.maximum(HALF * np.abs(exact), 2.0**-24 * largest)).all()
    assert largest.min() > 0 and not np.array_equal(back, exact)
    same(tensors, local.score(torch.from_numpy(half.astype(np.float32)), TEXTS, space, gradient=False))


def test_json_with_png_files_equals_safetensors_with_uint8(web):
    x = pixels()
    tensors, record = tensors_of(ask(web, packed(x, gradient=True)))
    reply = ask_json(web, prompts=TEXTS, images=[encoded(image) for image in x], gradient=True)
    assert reply.status_code == 200 and reply.headers["content-type"] == JSON
    answer = JsonReply.model_validate_json(reply.content)
    assert answer.reward == tensors["reward"].tolist() and answer.held_out == record.held_out
    assert answer.scores == {name: tensors[f"scores/{name}"].tolist() for name in ("clip", "bright", "watch")}
    assert np.array_equal(tensor_of(answer.gradient), tensors["gradient"])


@pytest.mark.parametrize(("x", "space"), [(images(), "images"), (latents(), "latents")], ids=["images", "latents"])
def test_json_with_a_tensor_equals_safetensors(web, x, space):
    tensors, _ = tensors_of(ask(web, packed(x, space=space, gradient=True)))
    reply = ask_json(web, prompts=TEXTS, x=tensor_record(x).model_dump(), space=space, gradient=True)
    answer = JsonReply.model_validate_json(reply.content)
    assert answer.reward == tensors["reward"].tolist() and answer.gradient.dtype == "fp32"
    assert np.array_equal(tensor_of(answer.gradient), tensors["gradient"])
    data = base64.b64encode(x.astype("<f2").tobytes()).decode()
    half = ask_json(web, prompts=TEXTS, x={"dtype": "fp16", "shape": list(x.shape), "data": data}, space=space)
    tensors, _ = tensors_of(ask(web, packed(x.astype(np.float16), space=space)))
    assert JsonReply.model_validate_json(half.content).reward == tensors["reward"].tolist()
    assert half.json()["gradient"] is None


def test_a_nan_of_a_model_is_answered_as_it_is():
    with client(made()) as opened:
        texts = ["red circle", "nan", "blue square"]
        tensors, _ = tensors_of(ask(opened, packed(images(), texts, gradient=True)))
        assert np.isnan(tensors["reward"]).tolist() == [False, True, False]
        assert np.isnan(tensors["gradient"]).all(axis=(1, 2, 3)).tolist() == [False, True, False]
        answer = ask_json(opened, prompts=texts, x=tensor_record(images()).model_dump()).json()
        assert [value is None for value in answer["reward"]] == [False, True, False] and answer["scores"]["bright"][0]


def test_a_model_that_is_not_required_may_fail():
    broken = {"name": "broken", "model": "tiny_models:Raises", "required": False}
    with client(made([BRIGHT, broken])) as opened:
        tensors, record = tensors_of(ask(opened, packed(images(), gradient=True)))
        np.testing.assert_allclose(tensors["reward"], 5 * images().mean((1, 2, 3)), rtol=1e-6)
        assert record.failed.keys() == {"broken"} and not INSIDE.search(record.failed["broken"])


# -- pictures ----------------------------------------------------------------------------------------------------------


def picture(*files, count=None):
    return {"prompts": ["a"] * (count or len(files)), "images": list(files)}


def test_the_colors_and_the_orientation_of_files_are_kept(small):
    """By a model that answers the mean, one channel and one half at a time."""
    for channel in range(3):
        image = np.zeros((3, 8, 4), np.uint8)
        image[channel, :2] = 255
        reply = ask_json(small, **picture(encoded(image)), gradient=True)
        np.testing.assert_allclose(reply.json()["reward"], [5 / 12], rtol=1e-6)
        assert reply.json()["gradient"]["shape"] == [1, 3, 8, 4]


@pytest.mark.parametrize(
    ("file", "mean"),
    [
        (encoded(np.full((3, 16, 16), 51, np.uint8), "JPEG"), 0.2),
        (encoded(np.full((3, 16, 16), 51, np.uint8), "JPEG", "CMYK"), 0.2),
        (encoded(np.full((3, 16, 16), 51, np.uint8), "PNG", "L"), 0.2),
        (encoded(np.full((3, 16, 16), 255, np.uint8), "PNG", "1"), 1.0),
        (encoded(np.full((3, 16, 16), 51, np.uint8), "PNG", "P"), 0.2),
        (encoded(np.full((3, 16, 16), 51, np.uint8), "PNG", "RGBA"), 0.2),
        (png(4, 4, (b"\0" + b"\x33\x33" * 12) * 4, bits=16), 0.2),
    ],
    ids=["JPEG", "JPEG in CMYK", "gray", "black and white", "palette", "transparency", "16 bits a channel"],
)
def test_files_of_every_mode_are_read_as_rgb(small, file, mean):
    reply = ask_json(small, **picture(file))
    np.testing.assert_allclose(reply.json()["scores"]["bright"], [mean], atol=1.5 / 255)


def test_a_gray_file_of_16_bits_is_refused_rather_than_cut_at_255(small):
    refused(ask_json(small, **picture(png(4, 4, (b"\0" + b"\x33\x33" * 4) * 4, bits=16, color=0))), 400, "16 bits")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_other_kinds_of_files_are_refused(small, kind):
    refused(ask_json(small, **picture(encoded(pixels(1)[0], kind))), 400, "no PNG or JPEG")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("", "no PNG or JPEG"),
        (base64.b64encode(b"%!PS-Adobe-3.0 EPSF").decode(), "no PNG or JPEG"),
        (base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(), "no PNG or JPEG"),
        ("data:image/png;base64," + encoded(pixels(1)[0]), "not base64"),
        ("äöü", "not base64"),
        (base64.b64encode(base64.b64decode(encoded(pixels(1)[0]))[:80]).decode(), "does not decode"),
        (png(8, 8, b"\0" * 10), "does not decode"),
        (png(0, 8), "no PNG or JPEG"),
    ],
)
def test_what_is_no_picture_is_refused(small, file, message):
    refused(ask_json(small, **picture(encoded(pixels(1)[0]), file)), 400, r"images\[1\].*" + message)


def test_a_picture_is_measured_before_it_is_decoded(small, monkeypatch):
    """A small file may claim any size, and may really decode to it: no pixel is looked at."""

    def decode(*_):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(Image.Image, "convert", decode)
    refused(ask_json(small, **picture(png(60000, 60000))), 400, "claims more pixels")
    refused(ask_json(small, **picture(png(65, 4))), 400, "65 x 4 pixels: at most 64 a side")
    refused(ask_json(small, **picture(png(8, 8), png(8, 9000))), 400, r"images\[1\] has 8 x 9000")
    refused(ask_json(small, **picture(png(8, 8), png(8, 16))), 400, "one size")
    flat = png(64, 64, bytes(64 * 193))  # 12 KiB of pixels each
    assert len(flat) < 200
    refused(ask_json(small, **picture(*[png(64, 64, bytes(64 * 193))] * 9)), 422, "at most 8 rows")
    many = made(limits={"body_mib": 0.125, "rows": 64, "image_side": 64})
    error = refused(ask_json(client(many), **picture(*[flat] * 11)), 400, "send fewer rows")
    assert "11 images of 64 x 64" in error.message and "0.125 MiB" in error.message


def test_as_many_pixels_as_a_body_may_hold_are_decoded():
    opened = client(made(limits={"body_mib": 0.125, "rows": 64, "image_side": 64}))
    flat = png(64, 64, bytes(64 * 193))
    assert ask_json(opened, **picture(*[flat] * 10)).json()["reward"] == [0.0] * 10


# -- refusals ----------------------------------------------------------------------------------------------------------


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
    refused(ask(small, len(header).to_bytes(8, "little") + header + b"a"), 422, "valid string")


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


TOKEN = "correct-horse-battery"


def tokens(**names):
    return {hashlib.sha256(token.encode()).hexdigest(): name for name, token in names.items()}


def with_tokens(**names):
    service = made()
    service.tokens = Tokens(tokens(**names))
    return service


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
        (images(9), ["a"] * 9, {}, "9 rows were sent: at most 8"),
        (images(), ["a"] * 2, {}, "3 images but 2 prompts"),
        (images(1), ["a"] * 9, {}, "1 images but 9 prompts"),
        (np.zeros((1, 3, 1, 65), np.uint8), ["a"], {}, "1 x 65 were sent: at most 64 a side"),
        (np.zeros((1, 3, 65, 1), np.uint8), ["a"], {}, "65 x 1 were sent: at most 64 a side"),
        (images(1), ["x" * 101], {}, "prompt of 101 characters"),
        (images(1)[:, :1], ["a"], {}, r"expected \[B, 3"),
        (images(1)[0], ["a"], {}, r"expected \[B, C"),
        (np.zeros((1,) * 8, np.float32), ["a"], {}, r"expected \[B, C"),
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
        ("", "Invalid JSON"),
        ("[1]", "Input should be an object"),
        ("[" * 3000, "Invalid JSON"),
        ("{}", "prompts: Field required"),
        ('{"prompts": []}', "prompts: "),
        ('{"prompts": ["a"], "space": "pixels"}', "space: .*'latents' or 'images'"),
        ('{"prompts": ["a"], "deadline_s": 1e999}', "deadline_s: "),
        ('{"prompts": ["a"], "deadline_s": -1}', "deadline_s: "),
        ('{"prompts": ["a"], "trainer": "a b"}', "trainer: "),
        ('{"prompts": ["a"], "reply_dtype": "bf16"}', "reply_dtype: "),
        ('{"prompts": ["a"], "%s": 1}' % ("y" * 3000), "Extra inputs"),
    ],
)
def test_422_options_that_are_none(small, options, message):
    refused(ask(small, options, JSON), 422, message, "invalid")
    text = json.dumps({"__metadata__": {REQUEST: options}, "x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})
    refused(ask(small, len(text).to_bytes(8, "little") + text.encode() + b"a"), 422, message, "invalid")


def test_422_a_prompt_that_a_model_refuses():
    with client(made([{"name": "picky", "model": "tiny_models:Picky"}])) as opened:
        refused(ask(opened, packed(images(1), ["refuse"])), 422, "refuse is no prompt", "model_refused")


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


async def settled(condition):
    """Wait for the condition, not for seconds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def together(service):
    transport = httpx2.ASGITransport(build_http(service), client=LOOPBACK, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://service", headers={"content-type": SAFETENSORS})


def test_503_beyond_its_bound_a_trainer_is_told_when_to_come_again():
    service = made(limits={"rows": 8}, queue={"rows": 8}, deterministic=True)

    async def run():
        gate = service.handles["bright"].gate = asyncio.Event()
        async with together(service) as web:
            body = packed(images(8), ["a"] * 8)
            taken = [asyncio.create_task(web.post("/v1/score", content=body)) for _ in range(3)]
            await settled(lambda: len(service._scheduler.queue) == 8)  # 2 batches are with the model
            reply = await web.post("/v1/score", content=body)
            refused(reply, 503, "8 rows waiting of at most 8", "queue_full")
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

    from dipp_ray.serving import ingress

    monkeypatch.setattr(ingress, "PAUSE_S", 0.0)
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


# -- tokens ------------------------------------------------------------------------------------------------------------


def counted(text, name, *labels):
    """{values of the labels: value} of one counter."""
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for sample in families[f"dipp_ray_reward_{name}"].samples
        if sample.name.endswith("_total")
    }


def test_the_token_says_who_calls_whatever_the_call_says():
    service = with_tokens(ann=TOKEN, ben="another-long-token", ann2=TOKEN + "-next")
    with client(service, host=("10.1.2.3", 5)) as opened:
        for token, rows in ((TOKEN, 3), ("another-long-token", 2), (TOKEN + "-next", 1)):
            x = images(rows)
            reply = ask(opened, packed(x, TEXTS[:rows], trainer="liar"), authorization=f"Bearer {token}")
            assert reply.status_code == 200
        text = opened.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text
    assert counted(text, "rows", "trainer") == {("ann",): 3, ("ben",): 2, ("ann2",): 1}
    assert TOKEN not in text and "liar" not in text


def test_several_tokens_of_one_trainer_are_valid_while_they_are_changed():
    service = made()
    opened = client(service, host=("10.1.2.3", 5))
    old, new = TOKEN, "the-token-that-comes-next"
    for valid in ([old], [old, new], [new]):
        digests = {hashlib.sha256(token.encode()).hexdigest(): "ann" for token in valid}
        service.reconfigure({"terms": [BRIGHT], "tokens": digests})
        said = [
            opened.get("/v1/models", headers={"authorization": f"Bearer {token}"}).status_code for token in (old, new)
        ]
        assert said == [200 if token in valid else 401 for token in (old, new)]


def test_tokens_come_from_a_file_and_from_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "tokens"
    file.write_text(f"# who may call\n\n ann:{TOKEN}\nann: {TOKEN}-next\nc.d_e-1:with:colons,and-commas!\n")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_tokens(None) == {}
    found = read_tokens(str(file))
    asked = Tokens(found)
    assert [asked.trainer(token) for token in (TOKEN, TOKEN + "-next", "with:colons,and-commas!")] == [
        "ann", "ann", "c.d_e-1"]  # fmt: skip
    assert asked.trainer("") is None and asked.trainer("ann") is None and len(found) == 3
    assert not any(TOKEN in text for text in (*found, *found.values()))  # digests alone
    monkeypatch.setenv(VARIABLE, f"ben:another-long-token, dan:{'x' * 16},")
    assert Tokens(read_tokens(None)).trainer("another-long-token") == "ben"
    both = Tokens(read_tokens(str(file)))
    assert (both.trainer(TOKEN), both.trainer("x" * 16)) == ("ann", "dan")


SECRET = "s3cret-of-twenty-chars"


@pytest.mark.parametrize(
    "line",
    [SECRET, f":{SECRET}", f"a b:{SECRET}", f"-ann:{SECRET}", f"ann:{SECRET} {SECRET}", f"ann:{SECRET}\x01",
     f"ann:{SECRET}ä", f"{'a' * 65}:{SECRET}", f"ann\n:{SECRET}", f"{SECRET}:ann", "ann:s3cret", "ann:"],
)  # fmt: skip
def test_a_bad_line_is_told_by_its_place_and_never_repeated(tmp_path, monkeypatch, line):
    monkeypatch.setenv(VARIABLE, f"ben:{TOKEN},{line}")
    with pytest.raises(UserError, match=f"{VARIABLE}, entry 2: ") as caught:
        read_tokens(None)
    assert "s3cret" not in str(caught.value) and TOKEN not in str(caught.value)
    monkeypatch.delenv(VARIABLE)
    (tmp_path / "tokens").write_text(f"ben:{TOKEN}\n\n{line}\n")
    with pytest.raises(UserError, match=r"line [34]: ") as caught:
        read_tokens(str(tmp_path / "tokens"))
    assert "s3cret" not in str(caught.value) and TOKEN not in str(caught.value)


def test_a_file_of_tokens_that_cannot_be_read_is_a_mistake_of_the_user(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe" + SECRET.encode("utf-16-le"))
    for path, reason in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "bytes", "not text"),
    ):
        with pytest.raises(UserError, match=f"http.tokens: .*{reason}"):
            read_tokens(str(path))


# -- the other routes --------------------------------------------------------------------------------------------------


def test_models_says_what_the_service_is(web, full):
    record = ServiceRecord.model_validate_json(web.get("/v1/models").content)
    assert record == full.describe() and record.latent_channels == 1 and record.deterministic
    assert [(m.name, m.weight, m.held_out) for m in record.models] == [
        ("clip", 0.7, False), ("bright", 5.0, False), ("watch", 1.0, True)]  # fmt: skip


def test_healthz_is_open_to_all_and_says_which_model_is_ill(monkeypatch):
    monkeypatch.setattr("dipp_ray.serving.ingress.HEALTH_EVERY_S", 0.0)  # each time is asked anew
    service = with_tokens(ann=TOKEN)
    opened = client(service, host=("10.1.2.3", 5))
    reply = opened.get("/healthz")
    assert reply.status_code == 200 and reply.json() == {"ok": True, "models": {"bright": "ok"}}

    class Ill:
        def remote(self):
            from ray.exceptions import RayTaskError

            async def ill():
                try:
                    raise RuntimeError("a row is not finite\nand more")
                except RuntimeError as error:
                    raise RayTaskError("check_health", "Traceback", error) from error

            return ill()

    service.handles["bright"].check_health = Ill()
    reply = opened.get("/healthz")
    assert reply.status_code == 503 and reply.json() == {"ok": False, "models": {"bright": "RuntimeError"}}


def test_metrics_count_calls_and_keep_a_bounded_number_of_labels():
    """A caller without a token names itself, and a label is kept for ever."""
    with client(made(limits={"rows": 8})) as opened:
        for i in range(70):
            assert ask(opened, packed(images(1), ["a"], trainer=f"t{i}")).status_code == 200
        assert ask(opened, packed(images(1) * np.nan, ["a"], trainer="t0")).status_code == 422
        reply = opened.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    calls = counted(reply.text, "calls", "trainer", "outcome")
    assert calls[("t0", "answered")] == 1 and calls[("t0", "refused")] == 1
    assert len({trainer for trainer, _ in calls}) == 65 and calls[("(others)", "answered")] == 6
    assert "dipp_ray_reward_batches_in_flight 0.0" in reply.text and "dipp_ray_reward_waiting_rows 0.0" in reply.text


class Loads(HTMLParser):
    """What a page would fetch."""

    def __init__(self, text):
        super().__init__()
        self.found, self.tags, self.text = [], set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.found += [value for name, value in attributes if name in ("src", "href", "action", "data", "srcset")]

    def handle_data(self, data):
        self.text += data


def test_the_page_of_the_docs_loads_nothing_from_elsewhere(web):
    reply = web.get("/docs")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/html")
    page = Loads(reply.text)
    assert page.found == ["openapi.json"] and not page.tags & {"script", "link", "img", "iframe", "base", "form"}
    assert "url(" not in reply.text and "@import" not in reply.text
    for said in ("POST /v1/score", "GET /v1/models", "ScoreOptions", "JsonCall", "reward"):
        assert said in page.text


def test_the_openapi_document_says_what_the_routes_do(web):
    reply = web.get("/openapi.json")
    document = reply.json()
    assert reply.status_code == 200 and document["openapi"].startswith("3.")
    assert document["paths"].keys() == {"/v1/score", "/v1/models", "/healthz", "/metrics"}
    score = document["paths"]["/v1/score"]["post"]
    assert score["requestBody"]["content"].keys() == {JSON, SAFETENSORS} == score["responses"]["200"]["content"].keys()
    assert {"400", "401", "403", "413", "415", "422", "500", "503", "504"} <= score["responses"].keys()
    known = document["components"]["schemas"]
    references = re.findall(r'"#/components/schemas/([^"]+)"', reply.text)
    assert references and set(references) <= known.keys()
    secured = {path for path, verbs in document["paths"].items() for route in verbs.values() if "security" in route}
    assert secured == {"/v1/score", "/v1/models", "/metrics"}  # health is asked for by who has no token


def test_bodies_on_their_way_are_bounded_together():
    uploads = Uploads(100)
    with uploads.room(60):
        with pytest.raises(QueueFull, match="too many calls are being sent"), uploads.room(41):
            pass
        with uploads.room(40):
            pass
    with uploads.room(100):
        pass


def test_what_a_model_raised_is_told_to_callers_from_outside_by_its_kind_alone():
    error = ModelError("a", "FileNotFoundError: /models/secret is gone", "failed")
    assert "secret" in str(error) and error.public == "reward 'a': FileNotFoundError"
    assert ModelError("a", "no such word: x", "refused").public == "reward 'a': no such word: x"
