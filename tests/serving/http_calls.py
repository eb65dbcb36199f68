"""Calls to an ingress in this process by HTTP, and what is expected of their replies."""

import asyncio
import base64
import hashlib
import io
import json
import re
import struct
import zlib

import httpx2
import numpy as np
from local_service import local_service
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from dipp_ray.serving.contract.records import JSON, REPLY, REQUEST, SAFETENSORS, ErrorReply, ReplyRecord, ScoreOptions
from dipp_ray.serving.contract.wire import pack, unpack
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.serving.http.app import build_http
from tiny_models import PROMPTS

CHUNK = 8
LOOPBACK = ("127.0.0.1", 40000)
TEXTS = PROMPTS[:3]
HALF = 2.0**-11  # fp16's relative rounding
BRIGHT = {"name": "bright", "model": "tiny_models:Brightness", "weight": 5.0}
# What no caller may read: where the code lies, and how it came to fail.
INSIDE = re.compile(r"Traceback|File \"|\.py\b|site-packages|line \d+, in|0x[0-9a-f]{6,}")


def made(models=(BRIGHT,), **settings):
    return local_service(ServiceConfig.model_validate({"models": list(models), "batch_rows": CHUNK} | settings))


def client(service, host=LOOPBACK, **settings):
    return TestClient(build_http(service), client=host, raise_server_exceptions=False, **settings)


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


def picture(*files, count=None):
    return {"prompts": ["a"] * (count or len(files)), "images": list(files)}


def png(width, height, content=b"", bits=8, color=2, parts=()):
    """A PNG file of one's own, in base64: its header may say what it likes. parts: further (name, data)."""

    def part(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    head += b"".join(part(name, data) for name, data in parts)
    data = b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", zlib.compress(content, 9)) + part(b"IEND", b"")
    return base64.b64encode(data).decode()


TOKEN = "correct-horse-battery"


def tokens(**names):
    return {hashlib.sha256(token.encode()).hexdigest(): name for name, token in names.items()}


def with_tokens(**names):
    service = made()
    service.tokens = tokens(**names)
    return service


async def settled(condition):
    """Wait for the condition, not for seconds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def together(service):
    transport = httpx2.ASGITransport(build_http(service), client=LOOPBACK, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://service", headers={"content-type": SAFETENSORS})


def counted(text, name, *labels):
    """{values of the labels: value} of one counter."""
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for sample in families[f"dipp_ray_reward_{name}"].samples
        if sample.name.endswith("_total")
    }
