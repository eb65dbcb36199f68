"""The bytes of tensors and records on the wire: safetensors with a record in the metadata, and tensors in JSON."""

import base64
import binascii
import json
import math

import numpy as np
from safetensors.numpy import save

from dipp_ray.serving.contract.failures import WireError
from dipp_ray.serving.contract.records import MOST_AXES, Record, TensorRecord

DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "U8": np.dtype("u1")}
NAMES = {"fp32": "F32", "fp16": "F16", "uint8": "U8"}


def pack(tensors: dict[str, np.ndarray], key: str, record: Record) -> bytes:
    """Tensors (fp32, fp16 or uint8) and one record in the metadata, as the bytes of a safetensors file."""
    contiguous = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    # What is not said is left out, so that services and callers of before `vae` take it.
    return save(contiguous, metadata={key: record.model_dump_json(exclude_none=True)})


def unpack(body: bytes, most_header: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(read-only tensors, metadata) of a safetensors body. Every claim of the header is checked against the bytes.

    safetensors' own reader drops the metadata. Nothing is allocated but the header, of at most `most_header` bytes.
    Raises WireError.
    """
    if len(body) < 8:
        raise WireError("the body is no safetensors: it ends within the length of its header")
    length = int.from_bytes(body[:8], "little")
    if length > most_header:
        raise WireError(f"the header claims {length} bytes; at most {most_header} are read")
    if length > len(body) - 8:
        raise WireError(f"the body is cut off: its header claims {length} bytes, {len(body) - 8} follow")
    header = _header(body[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WireError("__metadata__ must map names to texts")
    content = memoryview(body)[8 + length :]
    tensors, end = {}, 0
    for name, (dtype, shape, begin, stop) in sorted(
        ((name, _entry(name, entry)) for name, entry in header.items()), key=lambda item: item[1][2:]
    ):
        if begin != end or stop > len(content):
            raise WireError(f"tensor {_shown(name)} lies at {begin} to {stop}: tensors must fill the body without gaps")
        tensors[name] = np.frombuffer(content[begin:stop], dtype).reshape(shape)
        end = stop
    if end != len(content):
        raise WireError(f"{len(content) - end} bytes follow the last tensor")
    return tensors, metadata


def _header(text: bytes) -> dict:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_doubles)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError(f"the header is not JSON: {str(error)[:100]}") from None
    if not isinstance(header, dict):
        raise WireError("the header is no JSON object")
    return header


def _without_doubles(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise WireError("the header names something twice")
    return found


def _entry(name: str, entry) -> tuple[np.dtype, list[int], int, int]:
    """(dtype, shape, begin, end) of one tensor's entry in the header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise WireError(f"tensor {_shown(name)} needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise WireError(f"tensor {_shown(name)}: dtype {_shown(dtype)}; known are {', '.join(DTYPES)}")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
            raise WireError(f"tensor {_shown(name)}: {what} must be a list of sizes")
    if len(shape) > MOST_AXES or len(offsets) != 2:
        raise WireError(f"tensor {_shown(name)}: at most {MOST_AXES} axes, and two offsets")
    if 0 in shape:  # nothing in the contract is empty, and numpy refuses some such shapes
        raise WireError(f"tensor {_shown(name)} has no values")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise WireError(f"tensor {_shown(name)}: its bytes are not as many as dtype {dtype} and shape {shape} need")
    return DTYPES[dtype], shape, *offsets


def _shown(said) -> str:
    """What came, as it can stand in a message: JSON may name things with surrogates, which no reply can hold."""
    return ascii(said)[:64]


def tensor_of(record: TensorRecord) -> np.ndarray:
    """The read-only array of a tensor in JSON. Raises WireError where data and shape do not agree."""
    dtype = DTYPES[NAMES[record.dtype]]
    data = decoded(record.data, "x.data")
    if len(data) != math.prod(record.shape) * dtype.itemsize:
        raise WireError(f"x.data holds {len(data)} bytes, not those of {record.dtype} and shape {record.shape}")
    return np.frombuffer(data, dtype).reshape(record.shape)


def tensor_record(array: np.ndarray) -> TensorRecord:
    """An fp32 array as a tensor in JSON."""
    data = base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()
    return TensorRecord(dtype="fp32", shape=list(array.shape), data=data)


def decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise WireError(f"{what} is not base64: send it without a data: prefix and without line breaks") from None


def to_half(gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """fp32 [B, ...] -> (fp16 [B, ...], scale [B] in fp32) with gradient = fp16 * scale to fp16's rounding.

    A pixel's gradient is often below fp16's smallest number. The scale is a power of two, so that scaling itself is
    exact, and brings a row's largest magnitude into [1, 2).
    """
    largest = np.abs(gradient).reshape(len(gradient), -1).max(axis=1)
    usable = np.isfinite(largest) & (largest > 0)
    exponent = np.clip(np.frexp(np.where(usable, largest, 1.0))[1] - 1, -126, 127)
    scale = np.ldexp(np.float32(1), exponent).astype(np.float32)
    return (gradient / _rows(scale, gradient)).astype(np.float16), scale


def from_half(gradient: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The inverse of `to_half`, in fp32. Raises WireError where there is not one scale a row."""
    if scale.shape != gradient.shape[:1]:
        raise WireError(f"gradient_scale of shape {list(scale.shape)} does not fit {list(gradient.shape)}")
    return gradient.astype(np.float32) * _rows(scale, gradient)


def _rows(scale: np.ndarray, like: np.ndarray) -> np.ndarray:
    return scale.reshape(-1, *[1] * (like.ndim - 1))
