"""The service on Ray Serve: by handle and by HTTP equal to local, and faults that end in right values."""

import asyncio
import itertools
import os
import signal
import socket

import aiohttp
import numpy as np
import pytest
import ray
import torch

from dipp_ray.config import RewardSection
from dipp_ray.errors import NonFiniteError, RewardUnavailableError, UserError
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.serving.client.by_handle import HandleTransport
from dipp_ray.serving.client.by_http import OF_CALLER, HttpTransport
from dipp_ray.serving.client.reward_client import RewardClient
from dipp_ray.serving.contract.calls import Question
from dipp_ray.serving.core.scoring import Scorer
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.serving.deploy.lifecycle import await_rewards, deploy_rewards, stop_rewards
from dipp_ray.serving.deploy.private import private_config
from dipp_ray.serving.direct import DirectTransport
from tiny_models import PROMPTS, save_clip, save_pipeline

CHUNK = 8


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """clip and bright are the sum; watch and pid are held out."""
    role = {"cpus": 0.1}
    clip = save_clip(tmp_path_factory.mktemp("clip"))
    models = [
        {"name": "clip", "model": "clip", "folder": clip, "weight": 0.7, "role": role},
        {"name": "bright", "model": "tiny_models:Brightness", "weight": 5.0, "role": role},
        {"name": "pid", "model": "tiny_models:ProcessId", "held_out": True, "role": role},
    ]
    vae = save_pipeline(tmp_path_factory.mktemp("pipeline"))
    return ServiceConfig.model_validate(
        {"name": "shared", "models": models, "vae": vae, "deterministic": True, "batch_rows": CHUNK}
    )


@pytest.fixture(scope="module")
def local(config):
    terms = [model.term for model in config.models if model.name != "pid"]
    return Scorer(terms, LatentDecoder.from_folder(config.vae), CHUNK)


@pytest.fixture(scope="module")
def service(serve_url, config):
    deploy_rewards(config, "/")
    await_rewards(config.name, 180, print)
    yield
    stop_rewards(config.name)


def call(seed, count=3):
    x = np.random.default_rng(seed).standard_normal((count, 1, 8, 8), dtype=np.float32)
    return x, [PROMPTS[(seed + i) % len(PROMPTS)] for i in range(count)]


@ray.remote(num_cpus=0)
class Caller:
    """A trainer's client in a process of its own."""

    def __init__(self, name, trainer, way=HandleTransport):
        self.client = RewardClient(way(name), 90.0, on_nonfinite="raise", space="latents", trainer=trainer)

    async def score(self, x, prompts, gradient=True):
        return await self.client.score(x, prompts, gradient)


@pytest.fixture(scope="module")
def caller(service, config):
    return Caller.remote(config.name, "by-handle")


@pytest.fixture(scope="module")
def alone(service, config):
    return Caller.remote(config.name, "alone", DirectTransport)


def client_of(url, deadline_s=90.0, space="latents", dtype="fp32"):
    transport = HttpTransport([url], None, dtype, OF_CALLER)
    return RewardClient(transport, deadline_s, on_nonfinite="raise", space=space, trainer="by-http")


def by_http(url, calls, **settings):
    """All calls at once, from one client."""

    async def run():
        async with client_of(url, **settings) as client:
            return await asyncio.gather(*(client.score(*c, gradient=True) for c in calls))

    return asyncio.run(run())


def same(reply, expected, **tolerance):
    """Assert equality, to the bit without a tolerance."""
    pairs = [(reply["reward"], expected.reward)]
    pairs += [(reply["scores"][name], score) for name, score in expected.scores.items()]
    pairs += [(reply["gradient"], expected.gradient)] if expected.gradient is not None else []
    for got, want in pairs:
        torch.testing.assert_close(torch.tensor(got), want, **(tolerance or {"rtol": 0, "atol": 0}))
    assert reply["scores"].keys() == expected.scores.keys() | {"pid"}


CALLS = [call(seed, count) for seed, count in enumerate([3, 8, 11, 1, 3, 20])]


def test_by_handle_it_equals_local_to_the_bit_whoever_else_calls(ray_session, caller, local):
    replies = ray_session.get([caller.score.remote(ray_session.put(x), prompts) for x, prompts in CALLS])
    for (x, prompts), reply in zip(CALLS, replies, strict=True):
        same(reply, local.score(torch.from_numpy(x), prompts, "latents", True))
        assert reply["finite"].all() and reply["held_out"] == ["pid"]


def test_directly_it_equals_local_to_the_bit(ray_session, alone, local):
    replies = ray_session.get([alone.score.remote(ray_session.put(x), prompts) for x, prompts in CALLS])
    for (x, prompts), reply in zip(CALLS, replies, strict=True):
        same(reply, local.score(torch.from_numpy(x), prompts, "latents", True))
        assert reply["finite"].all() and reply["held_out"] == ["pid"]


def test_by_http_it_equals_local_to_the_bit_in_fp32(service, serve_url, local):
    for (x, prompts), reply in zip(CALLS, by_http(serve_url, CALLS), strict=True):
        same(reply, local.score(torch.from_numpy(x), prompts, "latents", True))
    images = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    (reply,) = by_http(serve_url, [(images, PROMPTS[:3])], space="images")
    same(reply, local.score(torch.from_numpy(images), PROMPTS[:3], "images", True))


def test_by_http_in_fp16_it_is_local_to_fp16s_rounding(service, serve_url, local):
    x, prompts = CALLS[0]
    (reply,) = by_http(serve_url, [(x, prompts)], dtype="fp16")
    expected = local.score(torch.from_numpy(x.astype(np.float16).astype(np.float32)), prompts, "latents", True)
    same({**reply, "gradient": expected.gradient.numpy()}, expected)
    error = np.abs(reply["gradient"] - expected.gradient.numpy()).max(axis=(1, 2, 3))
    assert (error <= 2.0**-11 * expected.gradient.abs().amax((1, 2, 3)).numpy()).all() and error.max() > 0


def test_what_it_serves_is_checked_at_the_start(service, serve_url):
    async def run(names):
        async with client_of(serve_url) as client:
            return await client.check(names, ["pid"], 8, gradient=True)

    assert asyncio.run(run(["clip", "pid"])).latent_channels == 1
    with pytest.raises(UserError, match="serves clip, bright, pid, but not aesthetic"):
        asyncio.run(run(["aesthetic"]))


@pytest.mark.parametrize("way", ["caller", "alone"])
def test_a_nan_is_refused_by_the_client(ray_session, way, request):
    caller = request.getfixturevalue(way)
    x, prompts = call(2)
    prompts[1] = "nan"
    with pytest.raises(NonFiniteError, match="reward 'bright' is not finite for 1 of 3 samples"):
        ray_session.get(caller.score.remote(x, prompts))


def test_a_refused_call_says_why_by_every_way(ray_session, caller, alone, service, serve_url):
    x, prompts = call(1)
    for way in (caller, alone):
        with pytest.raises(ValueError, match="3 latents but 1 prompts"):
            ray_session.get(way.score.remote(x, prompts[:1]))
    with pytest.raises(ValueError, match="3 latents but 1 prompts"):
        by_http(serve_url, [(x, prompts[:1])])


def test_weights_change_without_a_restart(ray_session, caller, service, config, local):
    x, prompts = call(1)
    before = ray_session.get(caller.score.remote(x, prompts))
    heavier = [model.model_copy(update={"weight": 2 * model.weight}) for model in config.models]
    deploy_rewards(config.model_copy(update={"models": heavier}), "/")
    await_rewards(config.name, 60, print)
    after = ray_session.get(caller.score.remote(x, prompts))
    deploy_rewards(config, "/")
    await_rewards(config.name, 60, print)
    np.testing.assert_allclose(after["reward"], 2 * before["reward"], rtol=1e-6)
    np.testing.assert_allclose(after["gradient"], 2 * before["gradient"], rtol=1e-5, atol=1e-8)
    assert np.array_equal(after["scores"]["pid"], before["scores"]["pid"])  # the same process
    same(ray_session.get(caller.score.remote(x, prompts)), local.score(torch.from_numpy(x), prompts, "latents", True))


@pytest.mark.parametrize("way", ["caller", "alone"])
def test_a_killed_replica_costs_no_call(ray_session, way, request, service, serve_url, local):
    caller = request.getfixturevalue(way)
    calls = [call(seed, 20) for seed in range(12)]
    victim = int(ray_session.get(caller.score.remote(*calls[0]))["scores"]["pid"][0])
    references = [caller.score.remote(*c) for c in calls]
    ray_session.wait(references, num_returns=1)  # in the middle: some answered, most not
    os.kill(victim, signal.SIGKILL)
    for (x, prompts), reply in zip(calls, ray_session.get(references), strict=True):
        same(reply, local.score(torch.from_numpy(x), prompts, "latents", True))
    assert int(reply["scores"]["pid"][0]) != victim


def test_a_killed_ingress_costs_no_call(ray_session, caller, service, config, serve_url, local):
    calls = [call(seed, 20) for seed in range(6)]
    references = [caller.score.remote(*c) for c in calls]
    ray_session.wait(references, num_returns=1)
    for actor in replicas_of(ray_session, config.name, "Rewards"):
        ray_session.kill(actor, no_restart=False)
    replies = [*ray_session.get(references), *by_http(serve_url, calls)]
    for (x, prompts), reply in zip([*calls, *calls], replies, strict=True):
        same(reply, local.score(torch.from_numpy(x), prompts, "latents", True))


def test_a_killed_caller_leaves_nothing_behind(ray_session, caller, service, config, local):
    doomed = Caller.remote(config.name, "doomed")
    first = [doomed.score.remote(*call(seed, 20)) for seed in range(20)]
    ray_session.wait(first, num_returns=1)
    ray_session.kill(doomed)
    x, prompts = call(7)
    same(ray_session.get(caller.score.remote(x, prompts)), local.score(torch.from_numpy(x), prompts, "latents", True))


def test_a_caller_who_leaves_by_http_is_noticed(service, serve_url):
    async def leave(patience_s):
        transport = HttpTransport([serve_url], None, "fp32", OF_CALLER)
        try:
            async with asyncio.timeout(patience_s):
                await transport.score(*call(0, 250), Question("latents", True, True), "leaver", 600.0)
        except TimeoutError:
            pass  # before the call was taken, or while it was in work: that is what is tried for
        await transport.close()

    async def noticed():
        async with aiohttp.ClientSession() as session, asyncio.timeout(120):
            for patience_s in itertools.cycle((0.1, 0.2, 0.4, 0.8, 1.6, 3.2)):
                await leave(patience_s)
                async with session.get(f"{serve_url}/metrics") as reply:
                    if 'outcome="caller gone",trainer="leaver"' in (text := await reply.text()):
                        return text

    assert "dipp_ray_reward_waiting_rows" in asyncio.run(noticed())


def test_no_service_is_an_error_within_the_deadline(serve_url):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(RewardUnavailableError, match=r"no answer for 3 samples within 0\.5 s"):
        by_http(nobody, [call(0)], deadline_s=0.5)


def test_an_application_that_is_not_there_is_a_mistake_of_the_user(service):
    with pytest.raises(UserError, match=r"reward\.app: no application 'typo' runs in this cluster"):
        asyncio.run(HandleTransport("typo").describe())


def test_a_model_that_does_not_load_is_one_sentence_and_others_are_left_alone(service, config, tmp_path):
    from ray import serve

    broken = RewardSection(terms=[RewardTerm(name="broken", model="clip", folder=str(tmp_path))])
    made = private_config("private", broken, config.vae, config.models[0].role, True, CHUNK)
    deploy_rewards(made)
    with pytest.raises(UserError, match=rf"did not start: .*there is no CLIP model in {tmp_path}"):
        await_rewards("private", 120, print)
    stop_rewards("private")  # nothing left to remove
    assert "private" not in serve.status().applications and config.name in serve.status().applications


def replicas_of(ray, name, deployment):
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [
        ray.get_actor(a["name"], namespace=a["namespace"])
        for a in actors
        if f"SERVE_REPLICA::{name}#{deployment}#" in a["name"]
    ]
