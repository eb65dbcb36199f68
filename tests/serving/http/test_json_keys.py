"""The keys of a JSON call: each once, and not many."""

import json

import pytest
from http_calls import ask, encoded, packed, pixels, refused

from dipp_ray.errors import CallError
from dipp_ray.serving.contract.failures import WireError
from dipp_ray.serving.contract.records import JSON
from dipp_ray.serving.http.keys import check_keys


@pytest.mark.parametrize(
    "text",
    [
        '{"prompts": ["a"], "images": ["%s"], "prompts": ["a"]}',
        '{"prompts": ["a"], "images": ["%s"], "prompt\\u0073": ["a"]}',
        '{"prompts": ["a"], "x": {"dtype": "fp32", "shape": [1, 3, 1, 1], "dtype" \n : "fp16", "data": "%s"}}',
    ],
)
def test_422_a_key_that_is_given_twice(small, text):
    refused(ask(small, text % encoded(pixels(1)[0]), JSON), 422, "is given twice", "invalid")


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"a": 1}, "b": {"a": "a"}, "c": ["a", "a", {"a": 1}, {"a": 1}]}',
        '{"a\\"b": 1, "a": 2, "b": 3}',
        '{"a\\\\": 1, "a": 2}',
        '{"a": "{\\"a\\": 1, \\"a\\": 2}", "b": ", \\"a\\":"}',
        '{"a": "}", "b": "{", "c": ":"}',
        "[]",
        '"a"',
        "}{",
        '{"a',
        '{"a\\',
    ],
)
def test_what_names_nothing_twice_passes(text):
    check_keys(text.encode(), 100)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"b":2,"a":3}',
        '{"a":"\\"","a":1}',
        '{"x":{"a":1},"x":2}',
        '{"x":{"a":1,"a":2}}',
        '{"a\\\\":1,"a\\\\":2}',
        '{"":1,"":2}',
    ],
)
def test_a_double_is_found_at_any_depth(text):
    with pytest.raises(CallError, match="is given twice"):
        check_keys(text.encode(), 100)


def test_the_bound_is_on_keys_texts_and_objects_together():
    assert check_keys(json.dumps({"a": ["b"]}).encode(), 6) is None  # with the text before and behind
    with pytest.raises(CallError, match="more values than any call"):
        check_keys(json.dumps({"a": ["b"]}).encode(), 5)
    with pytest.raises(WireError, match="no JSON"):
        check_keys(b'{"\\x": 1}', 100)


def test_a_million_keys_are_refused_before_they_are_read(small, monkeypatch):
    from dipp_ray.serving.http import bodies

    monkeypatch.setattr(bodies, "from_json", lambda text: pytest.fail("it is read"))
    text = "{" + ",".join(f'"{i}":1' for i in range(500)) + "}"
    refused(ask(small, text, JSON), 422, "more values than any call")


def test_a_safetensors_record_is_held_to_the_same(small):
    body = packed(pixels(1), ["a"])
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    header["__metadata__"]["request"] = '{"prompts": ["a"], "prompts": ["a"]}'
    text = json.dumps(header).encode()
    refused(ask(small, len(text).to_bytes(8, "little") + text + body[8 + length :]), 422, "is given twice")
