"""The contract's bytes: what is packed comes back, and a body that lies is refused with a sentence that says how."""

import base64
import json
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dipp_ray.serving.contract.failures import WireError
from dipp_ray.serving.contract.records import REPLY, REQUEST, JsonCall, ReplyRecord, ScoreOptions, TensorRecord
from dipp_ray.serving.contract.wire import from_half, pack, tensor_of, tensor_record, to_half, unpack

MOST_HEADER = 4096
HALF = 2.0**-11  # fp16's relative rounding
bounded = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def body(header, content=bytes(8)):
    """A safetensors body with a header of one's own: a record, or the header's bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def refusal(data):
    with pytest.raises(WireError) as caught:
        unpack(data, MOST_HEADER)
    return str(caught.value)


def valid():
    x = np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32)
    return pack({"x": x}, REQUEST, ScoreOptions(prompts=["a red circle", "ein Kreis in Grün"]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_what_is_packed_is_unpacked_to_the_bit(dtype):
    generator = np.random.default_rng(0)
    arrays = {name: generator.integers(0, 255, shape).astype(dtype) for name, shape in
              {"x": (2, 3, 5, 7), "reward": (2,), "scores/a b": (2,), "one": ()}.items()}  # fmt: skip
    if dtype != np.uint8:
        arrays["x"].flat[:3] = np.nan, np.inf, -0.0
    arrays["turned"] = arrays["x"].transpose(3, 1, 0, 2)  # not contiguous
    record = ReplyRecord(held_out=["wächter"], failed={"b": "not finite"})
    tensors, metadata = unpack(pack(arrays, REPLY, record), MOST_HEADER)
    assert ReplyRecord.model_validate_json(metadata[REPLY]) == record and metadata.keys() == {REPLY}
    assert tensors.keys() == arrays.keys()
    for name, value in arrays.items():
        assert tensors[name].dtype == dtype and tensors[name].shape == value.shape
        assert tensors[name].tobytes() == np.ascontiguousarray(value).tobytes() and not tensors[name].flags.writeable


@bounded
@given(st.integers(0, 2**32 - 1), st.floats(-37, 37), st.integers(1, 5), st.integers(1, 9))
def test_a_gradient_travels_as_fp16_to_its_rounding_at_any_size(seed, exponent, rows, width):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, 1, width)) * 10.0**exponent
    gradient = np.clip(x, -3e38, 3e38).astype(np.float32)
    half, scale = to_half(gradient)
    assert half.dtype == np.float16 and scale.shape == (rows,) and scale.dtype == np.float32
    back = from_half(half, scale)
    largest = np.abs(gradient).max(axis=(1, 2), keepdims=True)
    assert back.dtype == np.float32 and (back / from_half(np.ones_like(half), scale) == half).all()
    # Beside 2**-14 of a row's largest, fp16 is subnormal: the error is bounded by the row's then.
    error = np.abs(back.astype(np.float64) - gradient)
    assert (error <= np.maximum(HALF * np.abs(gradient), 2.0**-24 * largest)).all()


@pytest.mark.parametrize("size", [1e-12, 1e-30, 1.0, 1e30])
def test_a_row_of_tiny_gradients_keeps_its_digits_beside_a_row_of_large_ones(size):
    gradient = np.random.default_rng(0).uniform(0.1, 1, (2, 3, 4, 4)).astype(np.float32)
    gradient[1] *= np.float32(size)
    back = from_half(*to_half(gradient))
    np.testing.assert_allclose(back, gradient, rtol=HALF, atol=0)


def test_rows_of_zeros_or_not_finite_do_not_touch_the_others():
    gradient = np.array([[0, 0], [np.nan, 1], [np.inf, -np.inf], [1e-12, -3e-12]], np.float32)
    with np.errstate(all="raise", invalid="ignore"):
        back = from_half(*to_half(gradient))
    assert (back[0] == 0).all() and np.isnan(back[1, 0]) and back[1, 1] == 1
    assert back[2].tolist() == [np.inf, -np.inf]
    np.testing.assert_allclose(back[3], gradient[3], rtol=HALF)


def test_a_tensor_in_json_comes_back_to_the_bit():
    array = np.random.default_rng(0).standard_normal((2, 1, 3)).astype(np.float32)
    array[0, 0, 0] = np.nan
    record = TensorRecord.model_validate_json(tensor_record(array.transpose(2, 1, 0)).model_dump_json())
    assert record.shape == [3, 1, 2] and np.array_equal(tensor_of(record), array.transpose(2, 1, 0), equal_nan=True)
    halves = array.astype(np.float16)
    data = base64.b64encode(halves.tobytes()).decode()
    assert tensor_of(TensorRecord(dtype="fp16", shape=[2, 1, 3], data=data)).tobytes() == halves.tobytes()


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ([2], "AAAAAA==", "holds 4 bytes, not those of fp32"),
        ([2**31] * 8, "AAAAAA==", "holds 4 bytes"),
        ([1], "AAAAA", "not base64"),
        ([1], "AA\nAAAA==", "not base64"),
        ([1], "ÄÄÄÄ", "not base64"),
    ],
)
def test_a_tensor_in_json_whose_data_do_not_agree_is_refused(shape, data, message):
    with pytest.raises(WireError, match=message):
        tensor_of(TensorRecord(dtype="fp32", shape=shape, data=data))


@pytest.mark.parametrize("shape", [[], [0], [-1], [2**31 + 1], [True], [1.0], ["1"], [1] * 9, None])
def test_a_shape_in_json_is_a_list_of_sizes(shape):
    with pytest.raises(ValidationError):
        TensorRecord.model_validate_json(json.dumps({"dtype": "fp32", "shape": shape, "data": ""}))


def test_a_body_that_is_cut_anywhere_is_refused():
    whole = valid()
    unpack(whole, MOST_HEADER)
    header = int.from_bytes(whole[:8], "little")
    for cut in range(8):
        assert "ends within the length" in refusal(whole[:cut])
    for cut in (8, 9, 8 + header // 2, 7 + header):
        assert "cut off" in refusal(whole[:cut])
    for cut in (8 + header, 9 + header, len(whole) - 4, len(whole) - 1):
        assert "must fill the body" in refusal(whole[:cut])


def test_a_header_that_is_longer_than_the_limit_is_not_read():
    """A length alone, and one whose bytes did come."""
    for length in (MOST_HEADER + 1, 2**31, 2**63, 2**64 - 1):
        message = refusal(length.to_bytes(8, "little") + b"{}")
        assert f"claims {length} bytes" in message and f"at most {MOST_HEADER}" in message
    spaces = json.dumps({"x": entry()}).encode().ljust(MOST_HEADER)
    assert unpack(body(spaces), MOST_HEADER)[0]["x"].shape == (2,)
    assert "at most" in refusal(body(spaces + b" "))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"{}{}", "is not JSON"),
        (b'{"x": ' + b"9" * 4000 + b"}", "needs dtype"),
        (b"[" * 4000, "is not JSON"),
        (b'{"a":' * 600 + b"1" + b"}" * 600, "needs dtype|is not JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b'{"x": {}, "x": {}}', "something twice"),
        (b'{"x": {"dtype": "F32", "dtype": "F16", "shape": [2], "data_offsets": [0, 8]}}', "something twice"),
        (b'{"__metadata__": {"request": "a", "request": "b"}}', "something twice"),
        ({"__metadata__": []}, "__metadata__ must map"),
        ({"__metadata__": {"a": 1}}, "__metadata__ must map"),
        ({"__metadata__": None}, "__metadata__ must map"),
        ({"x": None}, "needs dtype, shape and data_offsets"),
        ({"x": {"dtype": "F32", "shape": [2]}}, "needs dtype, shape and data_offsets"),
        ({"x": entry() | {"more": 1}}, "and nothing else"),
        ({"x": entry(dtype="F64", shape=(1,))}, "known are F32, F16, U8"),
        ({"x": entry(dtype="f32")}, "known are F32, F16, U8"),
        ({"x": entry(dtype=["F32"])}, "known are F32, F16, U8"),
        ({"x": entry(dtype=None)}, "known are F32, F16, U8"),
        ({"x": entry(dtype="F16")}, "not as many as dtype F16"),
        ({"x": entry(shape=(3,))}, "not as many as dtype F32"),
        ({"x": entry(shape=())}, "not as many"),
        ({"x": entry(shape=(2**47,) * 8)}, "not as many"),
        ({"x": entry(shape=(-2, -1))}, "shape must be a list of sizes"),
        ({"x": entry(shape=(True, 2))}, "shape must be a list of sizes"),
        ({"x": entry(shape=(2.0,))}, "shape must be a list of sizes"),
        ({"x": entry(shape=(2**63,))}, "shape must be a list of sizes"),
        ({"x": entry(shape=("2",))}, "shape must be a list of sizes"),
        ({"x": entry() | {"shape": 2}}, "shape must be a list of sizes"),
        ({"x": entry(shape=(1,) * 8 + (2,))}, "at most 8 axes"),
        ({"x": entry(offsets=(8, 0))}, "not as many"),
        ({"x": entry(offsets=(-8, 0))}, "data_offsets must be a list of sizes"),
        ({"x": entry(offsets=(False, 8))}, "data_offsets must be a list of sizes"),
        ({"x": entry(offsets=(2**63, 2**63 + 8))}, "data_offsets must be a list of sizes"),
        ({"x": entry(offsets=(0, 4, 8))}, "two offsets"),
        ({"x": entry(offsets=(0,))}, "two offsets"),
        ({"x": entry(shape=(3,), offsets=(0, 12))}, "lies at 0 to 12"),  # beyond the body
        ({"x": entry(shape=(2**40,), offsets=(0, 2**42))}, "must fill the body"),
        ({"x": entry(shape=(1,), offsets=(4, 8))}, "without gaps"),
        ({"x": entry(shape=(1,), offsets=(0, 4)), "y": entry(shape=(1,), offsets=(2, 6))}, "without gaps"),
        ({"x": entry(), "y": entry()}, "without gaps"),  # the same bytes twice
        ({"x": entry(shape=(1,), offsets=(0, 4))}, "4 bytes follow the last tensor"),
        ({}, "8 bytes follow the last tensor"),
        ({"x": entry(shape=(0, 2**47, 2**47, 2**47), offsets=(0, 0))}, "no values"),
    ],
)
def test_a_header_that_lies_is_refused_with_what_is_wrong(header, message):
    said = refusal(body(header))
    assert re.search(message, said) and len(said) < 400


def test_a_tensor_without_values_is_refused():
    assert "no values" in refusal(body({"x": entry(shape=(0,), offsets=(0, 0))}, b""))
    assert "no values" in refusal(body({"x": entry(), "y": entry(shape=(4, 0), offsets=(8, 8))}))


@pytest.mark.parametrize("header", [{"\ud800": entry(dtype="U9")}, {"\ud800" * 900: entry(offsets=(4, 12))},
                                    {"x": entry(dtype="\ud800")}])  # fmt: skip
def test_what_is_said_of_a_strange_name_is_short_and_can_be_sent(header):
    said = refusal(body(header))
    assert len(said.encode()) < 600


def test_what_is_nested_at_any_depth_is_refused():
    """Also at the depth that is just read: what is said of it must not go deeper than its reader."""
    for depth in range(700, 1100):
        header = b'{"x": {"dtype": %b, "shape": [1], "data_offsets": [0, 4]}}' % (b"[" * depth + b"]" * depth)
        assert re.search("known are|is not JSON", refusal(body(header, bytes(4))))


def test_nothing_is_allocated_for_what_a_body_claims():
    claims = [entry(shape=(2**40,), offsets=(0, 2**42)), entry(dtype="U8", shape=(2**20, 2**20), offsets=(0, 2**40))]
    tracemalloc.start()
    for claim in claims:
        refusal(body({"x": claim}))
    large = pack({"x": np.zeros(2**22, np.float32)}, REQUEST, ScoreOptions(prompts=["a"]))
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    unpack(large, MOST_HEADER)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - before < 2**20  # 16 MiB are looked at where they lie


@st.composite
def damaged(draw):
    """A valid body with bytes changed, taken out and put in: anywhere, or in the header, which is where it counts."""
    data = bytearray(valid())
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, header if draw(st.booleans()) else len(data)))
        match draw(st.sampled_from(["change", "remove", "insert", "cut", "length", "token"])):
            case "change":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "remove":
                del data[at : at + draw(st.integers(1, 16))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "cut":
                del data[at:]
            case "length":
                data[:8] = draw(st.integers(0, 2**64 - 1) | st.integers(0, len(data))).to_bytes(8, "little")
            case "token":
                tokens = [b'"', b"{", b"}", b"[", b",", b"-", b"9" * 30, b"null", b"1e999", b"\\ud800", b'"x":']
                data[at:at] = draw(st.sampled_from(tokens))
                if draw(st.booleans()):  # a length that agrees
                    data[:8] = max(header - 8 + len(data) - len(valid()), 0).to_bytes(8, "little")
    return bytes(data)


def read(data):
    """As the service reads a body: the answer, or the one of three errors that it foresees."""
    try:
        tensors, metadata = unpack(data, MOST_HEADER)
        ScoreOptions.model_validate_json(metadata.get(REQUEST, ""))
        return tensors
    except (WireError, ValidationError) as error:
        assert str(error)
        return None


@bounded
@given(damaged())
def test_a_damaged_body_is_read_or_refused(data):
    read(data)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
SIZE = st.integers(0, 4) | st.sampled_from([-1, 2**31, 2**47, 2**63, 2**64, True, 1.0, None])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "F64", "", None]) | ANY_JSON,
        "shape": st.lists(SIZE, max_size=9) | ANY_JSON,
        "data_offsets": st.lists(st.integers(0, 16) | SIZE, min_size=1, max_size=3) | ANY_JSON,
    }
)
NAME = st.sampled_from(["x", "y", "__metadata__", "", "\ud800"]) | st.text(max_size=3)


@bounded
@given(st.dictionaries(NAME, ENTRY | ANY_JSON, max_size=3), st.binary(max_size=16))
def test_a_header_of_any_json_is_read_or_refused(header, content):
    tensors = read(body(header, content))
    if tensors is not None:
        assert sum(value.nbytes for value in tensors.values()) == len(content)


@pytest.mark.slow
@settings(bounded, max_examples=5_000)
@given(damaged(), st.dictionaries(NAME, ENTRY | ANY_JSON, max_size=3), st.binary(max_size=16))
def test_many_damaged_bodies_are_read_or_refused(data, header, content):
    read(data)
    read(body(header, content))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompts": ["a"]}, "either images or x"),
        ({"prompts": ["a"], "images": ["a"], "x": {"dtype": "fp32", "shape": [1], "data": "a"}}, "either images or x"),
        ({"prompts": ["a"], "images": ["a"], "space": "latents"}, "send latents as x"),
        ({"prompts": [], "images": ["a"]}, "at least 1 item"),
        ({"prompts": ["a"], "images": []}, "at least 1 item"),
        ({"prompts": ["a"], "images": [""]}, "at least 1 character"),
        ({"prompts": "a", "images": ["a"]}, "valid array"),
        ({"prompts": [1], "images": ["a"]}, "valid string"),
        ({"prompts": ["a"], "images": ["a"], "gradient": 1}, "valid boolean"),
        ({"prompts": ["a"], "images": ["a"], "deadline_s": 0}, "greater than 0"),
        ({"prompts": ["a"], "images": ["a"], "deadline_s": 86401}, "less than or equal to 86400"),
        ({"prompts": ["a"], "images": ["a"], "deadline_s": float("nan")}, "finite number|greater than 0"),
        ({"prompts": ["a"], "images": ["a"], "trainer": "a\n"}, "should match pattern"),
        ({"prompts": ["a"], "images": ["a"], "trainer": "a" * 65}, "should match pattern"),
        ({"prompts": ["a"], "images": ["a"], "weights": [1]}, "Extra inputs"),
    ],
)
def test_a_call_in_json_is_checked(call, message):
    with pytest.raises(ValidationError, match=message):
        JsonCall.model_validate_json(json.dumps(call))
