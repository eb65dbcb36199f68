"""Several VAEs behind one service, by HTTP; and what callers and services of before them see."""

import json

import numpy as np
import pytest
import torch
from http_calls import BRIGHT, CHUNK, TEXTS, ask, ask_json, client, latents, made, packed, refused, same, tensors_of

from dipp_ray.models.latents import LatentDecoder
from dipp_ray.serving.contract.records import REQUEST, ScoreOptions, ServiceRecord
from dipp_ray.serving.contract.wire import pack, tensor_record, unpack
from dipp_ray.serving.core.scoring import Scorer
from tiny_families import vae as family_vae
from tiny_models import save_pipeline


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    torch.manual_seed(0)
    wide = tmp_path_factory.mktemp("wide")
    family_vae().save_pretrained(wide)
    return [
        {"name": "small", "folder": save_pipeline(tmp_path_factory.mktemp("small"))},
        {"name": "wide", "folder": str(wide)},
    ]


@pytest.fixture(scope="module")
def both(vaes):
    return made([BRIGHT], vaes=vaes)


@pytest.fixture(scope="module")
def web(both):
    with client(both) as opened:
        yield opened


def wide_latents(count=3):
    return np.random.default_rng(3).standard_normal((count, 4, 8, 8), dtype=np.float32)


def test_each_call_is_decoded_by_the_vae_that_it_names(both, web, vaes):
    for name, folder, x in (("small", vaes[0]["folder"], latents()), ("wide", vaes[1]["folder"], wide_latents())):
        local = Scorer(both.reward_terms, LatentDecoder.from_folder(folder), CHUNK)
        expected = local.score(torch.from_numpy(x), TEXTS, "latents", True)
        tensors, _ = tensors_of(ask(web, packed(x, space="latents", vae=name, gradient=True)))
        same(tensors, expected)
        record = json.loads(tensor_record(x).model_dump_json())
        reply = ask_json(web, prompts=TEXTS, x=record, space="latents", vae=name)
        assert reply.json()["reward"] == pytest.approx(expected.reward.tolist())


def test_what_it_serves_names_them(web):
    record = ServiceRecord.model_validate_json(web.get("/v1/models").content)
    assert record.latent_channels is None and list(record.vaes) == ["small", "wide"]
    assert [vae.latent_channels for vae in record.vaes.values()] == [1, 4]
    assert record.vaes["small"].latents == "AutoencoderKL of 1 channels, 2 pixels a latent, scale 0.5, shift 0.1"
    assert record.vaes["wide"].latents == "AutoencoderKL of 4 channels, 2 pixels a latent, scale 0.18215, shift 0"


@pytest.mark.parametrize(
    ("options", "x", "message"),
    [
        ({}, latents(), "the service has the VAEs small, wide"),
        ({"vae": "sdxl"}, latents(), "vae is 'sdxl', but the service has small, wide"),
        ({"vae": "wide"}, latents(), r"expected \[B, 4, height, width\] of VAE 'wide'"),
    ],
)
def test_latents_of_another_are_refused_by_name(web, options, x, message):
    refused(ask(web, packed(x, space="latents", **options)), 422, message, "invalid")


def test_a_name_that_is_none_is_refused(web):
    body = json.dumps({"prompts": TEXTS, "space": "latents", "vae": "../../etc" * 40})
    refused(ask(web, pack({"x": latents()}, REQUEST, Options(text=body))), 422, "vae")


class Options:
    """A record of one's own making."""

    def __init__(self, text):
        self.text = text

    def model_dump_json(self, **_):
        return self.text


def test_with_one_named_vae_nothing_need_be_said(vaes):
    with client(made([BRIGHT], vaes=vaes[:1])) as web:
        unsaid, _ = tensors_of(ask(web, packed(latents(), space="latents", gradient=True)))
        said, _ = tensors_of(ask(web, packed(latents(), space="latents", gradient=True, vae="small")))
        assert np.array_equal(unsaid["gradient"], said["gradient"])
        assert web.get("/v1/models").json()["latent_channels"] == 1


def test_callers_and_services_of_before_are_not_told_of_names(vaes):
    """Both refuse a key that they do not know."""
    with client(made([BRIGHT], vae=vaes[0]["folder"])) as web:
        assert web.get("/v1/models").json().keys() == ServiceRecord.model_fields.keys() - {"vaes"}
    _, metadata = unpack(pack({"x": latents()}, REQUEST, ScoreOptions(prompts=TEXTS, space="latents")), 2**20)
    assert json.loads(metadata[REQUEST]).keys() == ScoreOptions.model_fields.keys() - {"vae"}
