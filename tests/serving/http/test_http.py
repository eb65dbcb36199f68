"""The routes in front of an ingress in this process: answers are what the models say."""

import base64
import html
import io
import re
import urllib.request
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from http_calls import (
    BRIGHT,
    HALF,
    INSIDE,
    TEXTS,
    TOKEN,
    ask,
    ask_json,
    client,
    counted,
    encoded,
    images,
    latents,
    made,
    packed,
    pixels,
    same,
    tensors_of,
    with_tokens,
)

from dipp_ray.serving.contract.failures import ModelError
from dipp_ray.serving.contract.limits import LimitsSection
from dipp_ray.serving.contract.records import JSON, SAFETENSORS, JsonReply, ServiceRecord, TensorRecord
from dipp_ray.serving.contract.wire import from_half, tensor_of, tensor_record
from dipp_ray.serving.http.document import EXAMPLE_REPLY, program, request_content, schema_of
from tiny_models import PROMPTS


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize(("x", "space"), [(images(), "images"), (latents(), "latents")], ids=["images", "latents"])
def test_in_fp32_scores_and_gradients_equal_local_to_the_bit(web, local, x, space, gradient):
    tensors, record = tensors_of(ask(web, packed(x, space=space, gradient=gradient)))
    same(tensors, local.score(torch.from_numpy(x), TEXTS, space, gradient))
    assert record.held_out == ["watch"] and record.failed == {}


def test_held_out_scores_are_left_out_where_they_are_not_asked_for(web, local):
    tensors, record = tensors_of(ask(web, packed(images(), space="images", gradient=True, held_out=False)))
    assert "scores/watch" not in tensors and record.held_out == []
    assert np.array_equal(tensors["reward"], local.score(torch.from_numpy(images()), TEXTS, "images", True).reward)


def test_a_call_of_several_chunks_equals_local_to_the_bit(web, local):
    x, texts = latents(19), [PROMPTS[i % 4] for i in range(19)]
    tensors, _ = tensors_of(ask(web, packed(x, texts, space="latents", gradient=True)))
    same(tensors, local.score(torch.from_numpy(x), texts, "latents", True))


def test_uint8_images_are_images_in_unit_range(web, local):
    x = pixels()
    tensors, _ = tensors_of(ask(web, packed(x, gradient=True)))
    same(tensors, local.score(torch.from_numpy(x.astype(np.float32) / 255), TEXTS, "images", True))


@pytest.mark.parametrize(("x", "space"), [(images(), "images"), (latents(), "latents")], ids=["images", "latents"])
def test_in_fp16_the_gradient_comes_to_fp16s_rounding(web, local, x, space):
    half = x.astype(np.float16)
    tensors, _ = tensors_of(ask(web, packed(half, space=space, gradient=True, reply_dtype="fp16")))
    expected = local.score(torch.from_numpy(half.astype(np.float32)), TEXTS, space, True)
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


def test_models_says_what_the_service_is(web, full):
    record = ServiceRecord.model_validate_json(web.get("/v1/models").content)
    assert record == full.describe() and record.latent_channels == 1 and record.deterministic
    assert [(m.name, m.weight, m.held_out) for m in record.models] == [
        ("clip", 0.7, False), ("bright", 5.0, False), ("watch", 1.0, True)]  # fmt: skip


def test_healthz_is_open_to_all_and_says_which_model_is_ill(monkeypatch):
    monkeypatch.setattr("dipp_ray.serving.core.ingress.HEALTH_EVERY_S", 0.0)  # each time is asked anew
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
    elsewhere = [target for target in page.found if not target.startswith("#")]
    assert elsewhere == ["openapi.json"] and not page.tags & {"script", "link", "img", "iframe", "base", "form"}
    assert "url(" not in reply.text and "@import" not in reply.text
    for said in (
        "| curl http://testserver/v1/score -H",
        "POST /v1/score",
        "GET /v1/models",
        "ScoreOptions",
        "JsonCall",
        "reward",
        "One prompt a row.",
        "The body did not come in time.",
    ):
        assert said in page.text
    inside = [target for target in page.found if target.startswith("#")]
    assert inside and all(f"id='{target[1:]}'" in reply.text for target in inside)


@pytest.mark.parametrize("service", [made(), with_tokens(ann=TOKEN)], ids=["open", "tokens"])
def test_the_program_of_the_docs_is_one_that_runs(service, monkeypatch, capsys):
    """As it is printed; only the network is the test's."""
    with client(service) as web:

        def urlopen(request):
            reply = web.post("/v1/score", content=request.data, headers=dict(request.header_items()))
            assert reply.status_code == 200, reply.text
            return io.BytesIO(reply.content)

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        monkeypatch.setenv("TOKEN", TOKEN)
        exec(program("http://testserver", bool(service.tokens)), {})
    assert "(2, 3, 64, 64)" in capsys.readouterr().out


@pytest.mark.parametrize("tokens", [False, True])
def test_the_openapi_document_says_what_the_routes_do(tokens):
    reply = client(with_tokens(ann=TOKEN) if tokens else made()).get("/openapi.json")
    document = reply.json()
    assert reply.status_code == 200 and document["openapi"].startswith("3.")
    assert document["paths"].keys() == {"/v1/score", "/v1/models", "/healthz", "/metrics"}
    score = document["paths"]["/v1/score"]["post"]
    assert score["requestBody"]["content"].keys() == {JSON, SAFETENSORS} == score["responses"]["200"]["content"].keys()
    assert {"400", "413", "415", "422", "429", "431", "500", "502", "503", "504"} <= score["responses"].keys()
    assert ("401" in score["responses"], "403" in score["responses"]) == (tokens, not tokens)
    known = document["components"]["schemas"]
    references = re.findall(r'"#/components/schemas/([^"]+)"', reply.text)
    assert references and set(references) <= known.keys()
    secured = {path for path, verbs in document["paths"].items() for route in verbs.values() if "security" in route}
    described = [
        r["description"] for verbs in document["paths"].values() for r in verbs.popitem()[1]["responses"].values()
    ]
    assert not {"Successful Response", "Bad Request", "Forbidden"} & set(described)
    # Health is asked for by who has no token, and none is asked for where there is none.
    assert secured == ({"/v1/score", "/v1/models", "/metrics"} if tokens else set())
    assert ("securitySchemes" in document["components"]) == tokens


def test_the_page_shows_an_answer_that_is_one():
    JsonReply.model_validate_json(EXAMPLE_REPLY)
    assert EXAMPLE_REPLY in html.unescape(client(made()).get("/docs").text)


def test_what_is_asked_for_follows_the_tokens_of_the_moment():
    service = made()
    with client(service) as web:
        assert "securitySchemes" not in web.get("/openapi.json").json()["components"]
        service.tokens = with_tokens(ann=TOKEN).tokens
        assert "securitySchemes" in web.get("/openapi.json").json()["components"]
        service.tokens = {}
        assert "securitySchemes" not in web.get("/openapi.json").json()["components"]


TENSOR = {"dtype": "fp32", "shape": [1, 3, 2, 2], "data": "AAAA"}
HALVES = TENSOR | {"dtype": "uint8"}


@pytest.mark.parametrize(
    ("call", "latents", "taken"),
    [
        ({"images": ["AAAA"]}, False, True),
        ({"images": ["AAAA"], "x": None}, False, True),
        ({"images": [""]}, False, False),
        ({"images": []}, False, False),
        ({"images": ["AAAA"] * 9, "prompts": ["a"] * 9}, False, False),
        ({"images": ["AAAA"], "x": TENSOR}, False, False),
        ({"images": None}, False, False),
        ({}, False, False),
        ({"images": ["AAAA"], "space": "latents"}, True, False),
        ({"images": ["AAAA"], "reply_dtype": "fp16"}, False, False),
        ({"images": ["AAAA"], "prompts": ["a" * 101]}, False, False),
        ({"x": TENSOR}, False, True),
        ({"x": TENSOR, "images": None}, False, True),
        ({"x": TENSOR | {"shape": [3, 2, 2]}}, False, False),
        ({"x": TENSOR | {"data": ""}}, False, False),
        ({"x": TENSOR, "space": "latents"}, True, True),
        ({"x": TENSOR, "space": "latents"}, False, False),
        ({"x": HALVES}, False, True),
        ({"x": HALVES, "space": "latents"}, True, False),
        ({"x": TENSOR, "space": "latents", "vae": "a"}, True, False),
        ({"x": TENSOR, "space": "latents", "vae": None}, True, True),
        ({"x": TENSOR, "space": "latents", "vae": "a"}, ["a"], True),
        ({"x": TENSOR, "space": "latents"}, ["a"], True),
        ({"x": TENSOR, "space": "latents", "vae": "c"}, ["a", "b"], False),
        ({"x": TENSOR, "space": "latents", "vae": "b"}, ["a", "b"], True),
        ({"x": TENSOR, "space": "latents"}, ["a", "b"], False),
        ({"x": TENSOR, "vae": "a"}, ["a", "b"], False),
        ({"images": ["AAAA"], "vae": "a"}, ["a", "b"], False),
        ({"images": ["AAAA"]}, ["a", "b"], True),
    ],
)
def test_the_document_describes_what_is_taken_and_nothing_else(call, latents, taken):
    """latents: whether there is a VAE, or the names of those there are."""
    from jsonschema import Draft202012Validator

    vaes = latents if isinstance(latents, list) else []
    content = request_content(LimitsSection(rows=8, prompt_chars=100), bool(latents), vaes)
    schema = content[JSON]["schema"] | {"components": {"schemas": {"TensorRecord": schema_of(TensorRecord)}}}
    assert Draft202012Validator(schema).is_valid({"prompts": ["a"]} | call) == taken


def test_what_a_model_raised_is_told_to_callers_from_outside_by_its_kind_alone():
    error = ModelError("a", "FileNotFoundError: /models/secret is gone", "failed")
    assert "secret" in str(error) and error.public == "reward 'a': FileNotFoundError"
    assert ModelError("a", "no such word: x", "refused").public == "reward 'a': no such word: x"
