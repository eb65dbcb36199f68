"""Replicas grow with the load and return right values while they come."""

import asyncio
import time

import numpy as np
import pytest
import ray

from dipp_ray.serving.client.by_handle import HandleTransport
from dipp_ray.serving.client.reward_client import RewardClient
from dipp_ray.serving.deploy.config import ServiceConfig

LONGEST_S = 240


@ray.remote(num_cpus=0)
class Trainer:
    def __init__(self, name):
        self.client = RewardClient(HandleTransport(name), LONGEST_S, on_nonfinite="raise", space="images", trainer=name)

    async def keep_calling(self, calls):
        x = np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32)
        replies = await asyncio.gather(*(self.client.score(x, ["red circle"] * 4, False) for _ in range(calls)))
        return all(np.allclose(reply["reward"], x.mean((1, 2, 3)), atol=1e-6) for reply in replies)


@pytest.mark.slow
def test_replicas_come_with_the_load(serve_url):
    from ray import serve

    from dipp_ray.serving.deploy.lifecycle import await_rewards, deploy_rewards, stop_rewards

    model = {"name": "slow", "model": "tiny_models:Slow", "replicas": [1, 2], "role": {"cpus": 0.1}}
    deploy_rewards(ServiceConfig.model_validate({"name": "scaled", "models": [model], "batch_rows": 4}))
    await_rewards("scaled", LONGEST_S, print)

    def running():
        return serve.status().applications["scaled"].deployments["slow"].replica_states.get("RUNNING", 0)

    assert running() == 1
    trainer, until = Trainer.remote("scaled"), time.monotonic() + LONGEST_S
    while running() < 2 and time.monotonic() < until:
        assert ray.get(trainer.keep_calling.remote(40))
    assert running() == 2
    stop_rewards("scaled")
