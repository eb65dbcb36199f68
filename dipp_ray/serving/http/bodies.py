"""The bodies of calls and replies over HTTP, in both forms of the contract: its `records.py` says what is in them."""

from typing import TypeVar

import numpy as np
from fastapi import Response
from pydantic import ValidationError
from pydantic_core import from_json

from dipp_ray.errors import CallError
from dipp_ray.serving.contract.calls import as_fp32, require_shape
from dipp_ray.serving.contract.failures import WireError
from dipp_ray.serving.contract.limits import LimitsSection, check_limits
from dipp_ray.serving.contract.records import (
    JSON,
    MOST_AXES,
    REPLY,
    REQUEST,
    SAFETENSORS,
    JsonCall,
    JsonReply,
    ReplyRecord,
    ScoreOptions,
    TensorRecord,
)
from dipp_ray.serving.contract.wire import pack, tensor_of, tensor_record, to_half, unpack
from dipp_ray.serving.core.joining import IngressReply
from dipp_ray.serving.http.keys import check_keys
from dipp_ray.serving.http.pictures import pixels_of
from dipp_ray.settings import fault, unknown_key

MOST_KEYS = 64  # keys and texts beside prompts and pictures
PUNCTUATION = 64  # commas and quotes of a record beside those in its prompts, and of a row beside its prompt
Options = TypeVar("Options", bound=ScoreOptions)


def parse(kind: str, body: bytes, limits: LimitsSection) -> tuple[np.ndarray, ScoreOptions]:
    """(x in fp32, options) of a body. Raises CallError, and WireError for what cannot be read at all."""
    if kind == SAFETENSORS:
        tensors, metadata = unpack(body, int(limits.header_kib * 1024))
        if REQUEST not in metadata:
            raise WireError(f"the metadata has no '{REQUEST}': a JSON record with the prompts")
        options = record_of(ScoreOptions, metadata[REQUEST].encode("utf-8", "surrogatepass"), limits)
        if tensors.keys() != {"x"}:
            raise WireError(f"send one tensor named x, not {len(tensors)} others")
        x = tensors["x"]
    else:
        options = record_of(JsonCall, body, limits)
        if options.images is not None:
            x = pixels_of(options.images, limits)
        else:
            assert options.x is not None, "JsonCall has one of both"
            x = tensor_of(options.x)
    require_shape(x.shape, options.space, latent_channels=None)
    check_limits(x.shape, options.prompts, options.space, limits)
    if x.dtype == np.uint8 and options.space != "images":
        raise CallError("latents were sent as uint8: send fp32 or fp16")
    return as_fp32(x), options


def record_of(model: type[Options], text: bytes, limits: LimitsSection) -> Options:
    """A record of the contract from JSON. Raises WireError for what is no JSON, CallError for another record.

    Its size in values, and the keys and lists that may grow, are looked at first: pydantic makes an error of each.
    """
    most = limits.rows * (limits.prompt_chars + PUNCTUATION) + PUNCTUATION
    if text.count(b",") > most or text.count(b'"') > most:
        raise CallError("the record holds more values than any call")
    check_keys(text, 2 * limits.rows + MOST_KEYS)  # a prompt and a picture a row
    try:
        data = from_json(text)
    except ValueError:
        raise WireError("the record is no JSON") from None
    if not isinstance(data, dict):
        raise CallError("the record is no JSON object")
    for key in ("prompts", "images"):
        if isinstance(data.get(key), list) and len(data[key]) > limits.rows:
            raise CallError(f"{len(data[key])} {key} were sent: at most {limits.rows} rows in one call")
    x = data.get("x")
    for where, part, kind in (((), data, model), (("x",), x, TensorRecord)):
        unknown = [key for key in part if key not in kind.model_fields] if isinstance(part, dict) else []
        if unknown:
            raise CallError(unknown_key((*where, unknown[0]), model))
    if isinstance(x, dict) and isinstance(x.get("shape"), list) and len(x["shape"]) > MOST_AXES:
        raise CallError(f"x.shape has {len(x['shape'])} axes: at most {MOST_AXES}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise CallError(fault(error, model)) from None


def rendered(kind: str, reply: IngressReply, options: ScoreOptions) -> Response:
    """The reply in the form in which the call came."""
    combined = reply.combined
    if kind == JSON:
        record = JsonReply(
            reward=numbers(combined.reward),
            scores={name: numbers(score) for name, score in combined.scores.items()},
            held_out=reply.held_out,
            failed=public(reply),
            gradient=None if combined.gradient is None else tensor_record(combined.gradient),
        )
        return Response(record.model_dump_json(), media_type=JSON)
    tensors = {"reward": combined.reward.astype(np.float32)}
    tensors |= {f"scores/{name}": score.astype(np.float32) for name, score in combined.scores.items()}
    if combined.gradient is not None:
        tensors["gradient"] = combined.gradient.astype(np.float32)
        if options.reply_dtype == "fp16":
            tensors["gradient"], tensors["gradient_scale"] = to_half(tensors["gradient"])
    beside = ReplyRecord(held_out=reply.held_out, failed=public(reply))
    return Response(pack(tensors, REPLY, beside), media_type=SAFETENSORS)


def public(reply: IngressReply) -> dict[str, str]:
    return {name: error.public for name, error in reply.failed.items()}


def numbers(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
