"""The rewards of an evaluation by a shared service: in calls that it takes, with what it did not score."""

import numpy as np
import pytest
import torch

from dipp_ray.evaluation import rewards
from dipp_ray.serving.contract.records import LimitsRecord, ModelRecord, ServiceRecord
from settings import tiny_config

TERM = {"model": "m:M", "differentiable": True, "weight": 1.0, "held_out": False, "mean": 0.0, "deviation": 1.0}
MODELS = [ModelRecord(name=name, hinge=None, cap=None, required=name == "a", **TERM) for name in ("a", "b")]


class Service:
    """Scores `a` as the mean, and `b` never for a call of two images."""

    def __init__(self):
        self.calls = []

    async def describe(self):
        limits = LimitsRecord(
            body_mib=0.01, header_kib=1, upload_s=1, rows=8, image_side=64, latent_side=8, aspect=8, prompt_chars=8
        )
        return ServiceRecord(
            name="s", version="1", deterministic=True, batch_rows=8, latent_channels=None, models=MODELS, limits=limits
        )

    async def score(self, x, prompts, question, trainer, expires_s):
        self.calls.append((len(x), prompts))
        mean = x.mean((1, 2, 3))
        scores, failed = {"a": mean, "b": 2 * mean}, {}
        if len(x) == 2:
            failed["b"] = scores.popitem() and "away"
        return {"reward": mean, "scores": scores, "gradient": None, "held_out": [], "failed": failed}

    async def close(self):
        pass


@pytest.mark.parametrize(("side", "sizes"), [(8, [8, 8, 4]), (16, [3] * 6 + [2]), (64, [1] * 20)])
def test_images_go_in_calls_that_fit_the_service(tmp_path, monkeypatch, side, sizes):
    service, said = Service(), []
    monkeypatch.setattr(rewards, "transport_of", lambda settings: service)
    config = tiny_config(tmp_path, tmp_path, tmp_path, "reward={app: rewards}")
    scorer = rewards.scorer_of(config, 16, torch.device("cpu"), said.append)
    images = torch.rand(20, 3, side, side)
    texts = [str(i) for i in range(20)]
    reply = scorer.score(images, texts, "images", gradient=False)
    assert [size for size, _ in service.calls] == sizes
    assert [text for _, prompts in service.calls for text in prompts] == texts
    np.testing.assert_allclose(reply.scores["a"], images.mean((1, 2, 3)), rtol=1e-5)
    lost = 2 if 2 in sizes else 0
    assert torch.isnan(reply.scores["b"]).tolist() == [False] * (20 - lost) + [True] * lost
    assert said == (["reward 'b' gave no score for some of 20 images: away"] if lost else [])
