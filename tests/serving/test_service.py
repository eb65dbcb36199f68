"""The service through its handle and client: equal to local, and faults that end in right values or a clear error."""

import os
import signal

import numpy as np
import pytest
import ray
import torch

from dipp_ray.config import RoleSection
from dipp_ray.errors import NonFiniteError, UserError
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.serving.scoring import Scorer
from tiny_models import PROMPTS, save_clip, save_pipeline

ROLE = RoleSection(cpus=0.1)
CHUNK = 8


@pytest.fixture(scope="module")
def serving(ray_session):
    from dipp_ray.serving import app

    return app


def start(serving, name, terms, vae=None, deterministic=True, replicas=1):
    """An application of the tests, without HTTP, in chunks of CHUNK rows."""
    config = serving.private_config(serving.private_name(name), terms, vae, ROLE, replicas, deterministic, CHUNK)
    serving.deploy_rewards(config)
    serving.await_rewards(config.name, 120, print)
    return config.name


@pytest.fixture(scope="module")
def terms(tmp_path_factory):
    return [
        RewardTerm(name="clip", model="clip", folder=save_clip(tmp_path_factory.mktemp("clip")), weight=0.7),
        RewardTerm(name="bright", model="tiny_models:Brightness", weight=5.0),
        RewardTerm(name="watch", model="tiny_models:NoGradient", held_out=True),
    ]


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def local(terms, vae):
    return Scorer(terms, LatentDecoder.from_pipeline(vae), chunk_size=CHUNK)


@pytest.fixture(scope="module")
def strict(serving, terms, vae):
    """The application in deterministic mode, two replicas."""
    name = start(serving, "strict", terms, vae, replicas=2)
    yield name
    serving.stop_rewards(name)


@pytest.fixture(scope="module")
def merging(serving, terms, vae):
    name = start(serving, "merging", terms, vae, deterministic=False)
    yield name
    serving.stop_rewards(name)


def call(seed, count=3):
    x = np.random.default_rng(seed).standard_normal((count, 1, 8, 8), dtype=np.float32)
    return x, [PROMPTS[(seed + i) % len(PROMPTS)] for i in range(count)]


@ray.remote(num_cpus=0)
class Caller:
    """A trainer's client in a process of its own."""

    def __init__(self, name, deadline_s, on_nonfinite, space):
        from dipp_ray.serving.client import RewardClient
        from dipp_ray.serving.transports import HandleTransport

        self.client = RewardClient(HandleTransport(name), deadline_s, on_nonfinite, space)

    async def score(self, x, prompts, gradient=True):
        return await self.client.score(x, prompts, gradient)


def client(name, deadline_s=60.0, on_nonfinite="raise", space="latents"):
    return Caller.remote(name, deadline_s, on_nonfinite, space)


def same(reply, expected, **tolerance):
    """Assert equality, to the bit without a tolerance."""
    pairs = [(reply["reward"], expected.reward)]
    pairs += [(reply["scores"][name], score) for name, score in expected.scores.items()]
    pairs += [(reply["gradient"], expected.gradient)] if expected.gradient is not None else []
    for got, want in pairs:
        torch.testing.assert_close(torch.tensor(got), want, **(tolerance or {"rtol": 0, "atol": 0}))
    assert reply["scores"].keys() == expected.scores.keys()


def test_deterministic_equals_local_to_the_bit_whoever_else_calls(ray_session, strict, local):
    actor = client(strict)
    calls = [call(seed, count) for seed, count in enumerate([3, 8, 11, 1, 3, 20])]
    replies = ray_session.get([actor.score.remote(ray_session.put(x), prompts) for x, prompts in calls])
    for (x, prompts), reply in zip(calls, replies, strict=True):
        same(reply, local.score(torch.from_numpy(x), prompts))
        assert reply["finite"].all() and reply["gradient"].shape == x.shape


def test_merged_calls_equal_local_and_share_batches(ray_session, merging, local, tmp_path):
    actor = client(merging)
    calls = [(*call(seed, count), seed % 2 == 0) for seed, count in enumerate([3, 2, 3, 8, 1, 11, 2, 3])]
    replies = ray_session.get([actor.score.remote(x, prompts, gradient) for x, prompts, gradient in calls])
    for (x, prompts, gradient), reply in zip(calls, replies, strict=True):
        assert (reply["gradient"] is not None) == gradient
        same(reply, local.score(torch.from_numpy(x), prompts, gradient=gradient), rtol=1e-6, atol=1e-6)


def test_images_may_be_sent(ray_session, strict, local):
    images = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    reply = ray_session.get(client(strict, space="images").score.remote(images, PROMPTS[:3]))
    same(reply, local.score(torch.from_numpy(images), PROMPTS[:3], "images"))


def test_a_bad_call_fails_alone(ray_session, merging, local):
    actor = client(merging)
    x, prompts = call(1)
    good = [actor.score.remote(x, prompts) for _ in range(4)]
    with pytest.raises(ValueError, match="3 latents but 1 prompts"):
        ray_session.get(actor.score.remote(x, prompts[:1]))
    for reply in ray_session.get(good):
        same(reply, local.score(torch.from_numpy(x), prompts), rtol=1e-6, atol=1e-6)


def test_a_nan_is_refused_or_masked_by_policy(ray_session, strict):
    x, prompts = call(2)
    prompts[1] = "nan"
    with pytest.raises(NonFiniteError, match="reward 'bright' is not finite for 1 of 3 samples"):
        ray_session.get(client(strict).score.remote(x, prompts))
    reply = ray_session.get(client(strict, on_nonfinite="drop").score.remote(x, prompts))
    assert reply["finite"].tolist() == [True, False, True]
    assert np.isnan(reply["reward"][1]) and np.isfinite(reply["gradient"][[0, 2]]).all()


def test_a_killed_replica_costs_no_call(ray_session, serving, terms, vae, local):
    doomed = [RewardTerm(name="pid", model="tiny_models:ProcessId", held_out=True)]
    name = start(serving, "killed", [*terms, *doomed], vae, replicas=2)
    actor = client(name)
    x, prompts = call(3)
    victim = int(ray_session.get(actor.score.remote(x, prompts))["scores"]["pid"][0])
    calls = [call(seed, 20) for seed in range(24)]
    references = [actor.score.remote(x, prompts) for x, prompts in calls]
    ray_session.wait(references, num_returns=1)  # in the middle: some answered, most not
    os.kill(victim, signal.SIGKILL)
    for (x, prompts), reply in zip(calls, ray_session.get(references), strict=True):
        reply["scores"].pop("pid")
        same(reply, local.score(torch.from_numpy(x), prompts))
    serving.stop_rewards(name)


def test_no_answer_is_an_error_within_the_deadline(ray_session, serving):
    from dipp_ray.errors import RewardUnavailableError

    name = start(serving, "slow", [RewardTerm(name="never", model="tiny_models:Never")])
    actor = client(name, 0.5, "raise", "images")
    with pytest.raises(RewardUnavailableError, match=r"no answer for 3 samples within 0\.5 s"):
        ray_session.get(actor.score.remote(np.zeros((3, 3, 8, 8), np.float32), PROMPTS[:3]))
    for replica in _replicas(ray_session, name, "never"):
        ray_session.kill(replica)  # it would never end by itself
    serving.stop_rewards(name)


def test_a_later_configuration_takes_the_place_and_others_are_left_alone(ray_session, serving, strict, vae):
    from ray import serve

    bright, clipless = [RewardTerm(name="bright", model="tiny_models:Brightness")], call(4)
    name = start(serving, "orphan", bright, vae)
    start(serving, "orphan", [bright[0].model_copy(update={"name": "renamed"})], vae)
    assert ray_session.get(client(name).score.remote(*clipless))["scores"].keys() == {"renamed"}
    serving.stop_rewards(name)
    serving.stop_rewards(name)  # nothing left to remove
    assert name not in serve.status().applications and strict in serve.status().applications
    assert ray_session.get(client(strict).score.remote(*call(5)))["finite"].all()
    assert not serve.status().proxies  # no port was opened


def test_a_model_that_does_not_load_is_one_sentence(serving, tmp_path):
    broken = RewardTerm(name="broken", model="clip", folder=str(tmp_path))
    with pytest.raises(UserError, match=rf"did not start: .*there is no CLIP model in {tmp_path}"):
        start(serving, "broken", [broken])


def _replicas(ray, name, deployment):
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [
        ray.get_actor(a["name"], namespace=a["namespace"])
        for a in actors
        if f"SERVE_REPLICA::{name}#{deployment}#" in a["name"]
    ]
