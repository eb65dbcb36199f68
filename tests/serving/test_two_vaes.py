"""Two families behind one service on Ray Serve: their trainers call at once, and each gets what it gets alone."""

import asyncio

import numpy as np
import pytest
import ray
import torch

from dipp_ray.errors import UserError
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.serving.client.by_handle import HandleTransport
from dipp_ray.serving.client.by_http import OF_CALLER, HttpTransport
from dipp_ray.serving.client.reward_client import RewardClient
from dipp_ray.serving.core.scoring import Scorer
from dipp_ray.serving.deploy.application import vae_record
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.serving.deploy.lifecycle import await_rewards, deploy_rewards, stop_rewards
from dipp_ray.serving.direct import DirectTransport
from tiny_families import vae as family_vae
from tiny_models import PROMPTS, save_clip, save_pipeline

pytestmark = pytest.mark.slow  # a service of six processes
CHUNK, NAME = 8, "families"
CHANNELS = {"small": 1, "wide": 4}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    torch.manual_seed(0)
    wide = tmp_path_factory.mktemp("wide")
    family_vae().save_pretrained(wide)
    role = {"cpus": 0.1}
    clip = {"model": "clip", "folder": save_clip(tmp_path_factory.mktemp("clip"), image_size=16), "role": role}
    models = [{"name": "clip", "weight": 0.7} | clip, {"name": "watch", "held_out": True} | clip]
    folders = {"small": save_pipeline(tmp_path_factory.mktemp("small")), "wide": str(wide)}
    vaes = [{"name": name, "folder": folder, "role": role} for name, folder in folders.items()]
    return ServiceConfig.model_validate(
        {"name": NAME, "models": models, "vaes": vaes, "deterministic": True, "batch_rows": CHUNK}
    )


@pytest.fixture(scope="module")
def url(serve_url, config):
    deploy_rewards(config, "/")
    await_rewards(NAME, 600, print)
    yield serve_url
    stop_rewards(NAME)


@ray.remote(num_cpus=0)
class Trainer:
    def __init__(self, vae, way):
        self.client = RewardClient(way(NAME), 240.0, on_nonfinite="raise", space="latents", trainer=vae, vae=vae)

    async def score(self, calls):
        return await asyncio.gather(*(self.client.score(*call, True) for call in calls))


def calls_of(vae):
    rng = np.random.default_rng(CHANNELS[vae])
    sizes = (3, 8, 11)
    return [
        (rng.standard_normal((n, CHANNELS[vae], 8, 8), dtype=np.float32), [PROMPTS[i % 4] for i in range(n)])
        for n in sizes
    ]


def same_as_alone(config, vae, replies):
    folder = {served.name: served.folder for served in config.vaes}[vae]
    local = Scorer([model.term for model in config.models], LatentDecoder.from_folder(folder), CHUNK)
    for (x, prompts), reply in zip(calls_of(vae), replies, strict=True):
        expected = local.score(torch.from_numpy(x), prompts, "latents", True)
        assert np.array_equal(reply["gradient"], expected.gradient.numpy())
        assert np.array_equal(reply["reward"], expected.reward.numpy())
        assert all(np.array_equal(reply["scores"][name], score) for name, score in expected.scores.items())


@pytest.mark.parametrize("way", [HandleTransport, DirectTransport])
def test_two_trainers_of_different_families_get_to_the_bit_what_each_gets_alone(url, config, way):
    trainers = {vae: Trainer.remote(vae, way) for vae in CHANNELS}
    replies = ray.get([trainer.score.remote(calls_of(vae)) for vae, trainer in trainers.items()])
    for vae, said in zip(trainers, replies, strict=True):
        same_as_alone(config, vae, said)


def test_by_http_too_and_latents_of_another_are_refused_by_name(url, config):
    async def run():
        transport = HttpTransport([url], None, "fp32", OF_CALLER)
        ask = {"on_nonfinite": "raise", "space": "latents", "trainer": "http"}
        async with RewardClient(transport, 240.0, vae="wide", **ask) as wide:
            replies = [await wide.score(*call, True) for call in calls_of("wide")]
            with pytest.raises(ValueError, match=r"\[B, 4, height, width\] of VAE 'wide'"):
                await wide.score(*calls_of("small")[0], True)
            own = {vae.name: vae_record(vae.folder) for vae in config.vaes}
            assert (await wide.check(["clip"], [], 8, True, own["wide"])).vaes == own
            with pytest.raises(UserError, match=r"under 'wide' an AutoencoderKL of 4 .*: set reward\.vae to small"):
                await wide.check(["clip"], [], 8, True, own["small"])
        async with RewardClient(HttpTransport([url], None, "fp32", OF_CALLER), 240.0, **ask) as unsaid:
            with pytest.raises(ValueError, match="the service has the VAEs small, wide"):
                await unsaid.score(*calls_of("small")[0], True)
        return replies

    same_as_alone(config, "wide", asyncio.run(run()))


def test_a_killed_decoder_costs_no_call(url, config):
    """It keeps nothing between the two calls that a batch makes of it."""
    trainer = Trainer.remote("small", HandleTransport)
    first = ray.get(trainer.score.remote(calls_of("small")))
    running = [trainer.score.remote(calls_of("small")) for _ in range(4)]
    actors = ray.util.list_named_actors(all_namespaces=True)
    for actor in [actor for actor in actors if f"SERVE_REPLICA::{NAME}#VAE-small#" in actor["name"]]:
        ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]), no_restart=False)
    for replies in [first, *ray.get(running)]:
        same_as_alone(config, "small", replies)
