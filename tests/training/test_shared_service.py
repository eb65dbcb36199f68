"""A run that calls a shared reward service, by handle or by HTTP, is the same run to the bit."""

import numpy as np
import pytest
import torch
from ray import serve
from test_parity import assert_same, plain_run, ray_run
from test_run import TERMS, kills_change_nothing

from dipp_ray.errors import UserError
from dipp_ray.evaluation.rewards import scorer_of
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.serving.deploy.lifecycle import await_rewards, deploy_rewards, stop_rewards
from dipp_ray.training.run import train
from settings import tiny_config
from tiny import PROMPTS, pixart_pipeline, prompt_file

STEPS = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    return folder, pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")


@pytest.fixture(scope="module")
def shared(serve_url, world):
    models = [{**term, "role": {"cpus": 0.1}} for term in TERMS]
    config = ServiceConfig.model_validate(
        {"name": "shared", "models": models, "vae": str(world[1]), "deterministic": True, "batch_rows": 16}
    )
    deploy_rewards(config, "/")
    await_rewards("shared", 120, print)
    yield serve_url
    stop_rewards("shared")


def config_of(world, **reward):
    return tiny_config(*world, "run.steps=8", f"reward={reward}")


def run(world, **reward):
    return ray_run(config_of(world, **reward), STEPS)


def test_killed_and_resumed_by_http_it_is_the_uninterrupted_run_by_handle(shared, world):
    settings = ["reward.standardise=true", "init.score_warmup_steps=2"]
    by_handle, by_http = ([*settings, f"reward.{way}"] for way in ("app=shared", f"urls=[{shared}]"))
    kills_change_nothing(world, "shared", by_handle, by_http)
    assert "shared" in serve.status().applications  # it belongs to nobody's run


def test_by_handle_it_is_the_plain_loop(shared, world):
    by_handle = run(world, app="shared")
    assert_same(by_handle, plain_run(config_of(world, terms=TERMS[:1]), STEPS), 1e-5)


def test_its_evaluation_is_scored_by_the_service(shared, world):
    images, texts = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0)), PROMPTS * 4
    by_service = scorer_of(config_of(world, urls=[shared]), 16, torch.device("cpu"), print)
    local = scorer_of(config_of(world, terms=TERMS), 16, torch.device("cpu"), print)
    scores, expected = (s.score(images, texts, "images", gradient=False).scores for s in (by_service, local))
    assert scores.keys() == expected.keys() == {"ink", "gold"}
    assert all(torch.equal(scores[name], expected[name]) for name in scores)
    assert [term.held_out for term in by_service.terms] == [False, True]


@pytest.mark.slow
def test_it_is_the_run_with_a_service_of_its_own(shared, world):
    own, by_http = run(world, terms=TERMS), run(world, urls=[shared])
    assert by_http[0] == own[0] and np.array_equal(by_http[1], own[1])


def test_another_service_than_was_expected_is_refused_before_a_step(shared, world):
    config = config_of(world, urls=[shared], terms=[TERMS[0] | {"name": "hps"}])
    with pytest.raises(UserError, match="serves ink, gold, but not hps"):
        train(config)
