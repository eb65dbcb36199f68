"""The Ray pipeline gives the plain loop's losses and x0, in both orders and at every division of the work."""

import numpy as np
import pytest
import torch

from dipp_ray.data.prompts import read_prompts
from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.training.plain import plain_loop
from dipp_ray.training.session import only_session
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

STEPS = 20
COMPARED = ("score_loss", "score_gap", "reward", "divergence_norm", "reward_gradient_norm")
DRAWS = Draws(7, EVALUATION, 0, range(4))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    return folder, pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")


def plain_run(config, steps=STEPS):
    """Measurements of every step, and x0 of fixed noises at the end, by the plain loop."""
    loop = plain_loop(config, read_prompts(config.data.prompts, config.data.column))
    measured = [loop.step(step) for step in range(steps)]
    loop.generator.network.load_state_dict(loop.average)
    with torch.no_grad():
        *_, x0 = loop.sample(DRAWS, graph=False)
    return measured, x0.numpy()


def ray_run(config, steps=STEPS):
    """The same by the Ray pipeline."""
    prompts = read_prompts(config.data.prompts, config.data.column)
    with only_session(config, prompts, print) as session:
        controller = session.controller
        controller.together("generator", "start")
        controller.warm_score_up()
        measured = [step.metrics for step in controller.steps(0, lambda done: done == steps)]
        (embeds,) = controller.encoded([prompts.rows(DRAWS)])
        (x0,) = controller.together("generator", "sample_average", [(DRAWS, embeds)])[0]
        return measured, x0


def assert_same(ours, theirs, tolerance):
    for step, (a, b) in enumerate(zip(ours[0], theirs[0], strict=True)):
        for key in COMPARED:
            # The reward of this test lies around 0 with a deviation of order 1: its error is counted against that.
            allowed = pytest.approx(b[key], rel=tolerance, abs=tolerance if key == "reward" else 0)
            assert a[key] == allowed, f"{key} at step {step}"
    np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=tolerance * np.abs(theirs[1]).max() * 10)


# Overlapped, by a shared reward service, over fewer steps: test_shared_service.py.
@pytest.mark.parametrize("order", ["strict", pytest.param("overlapped", marks=pytest.mark.slow)])
def test_one_rank_equals_the_plain_loop(ray_session, world, order):
    """The reward's latents are decoded in a process apart."""
    config = tiny_config(*world, f"objective.order={order}", "objective.score_updates=2", "reward.decode_once=true")
    plain = plain_run(config)
    assert plain[0][0]["score_loss"] != pytest.approx(plain[0][-1]["score_loss"], rel=1e-3)
    assert_same(ray_run(config), plain, 1e-5)


@pytest.mark.slow
def test_a_generator_with_a_reading_of_its_own_equals_the_plain_loop(ray_session, world):
    """It predicts x0; teacher and score model go on predicting eps, all at the same times of another distribution."""
    times = "{distribution: logit_normal, shift: 2, mean: -0.5, std: 0.7}"
    config = tiny_config(
        *world, "model.prediction=sample", "model.input=unit",
        f"objective.score_times={times}", f"objective.divergence_times={times}",
    )  # fmt: skip
    assert_same(ray_run(config, steps=4), plain_run(config, steps=4), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["strict", "overlapped"])
def test_the_same_to_the_bit_when_run_twice(ray_session, world, order):
    """Once with the VAE in front of the reward model, and once in a process apart."""
    configs = [
        tiny_config(*world, f"objective.order={order}", f"reward.decode_once={apart}") for apart in ("false", "true")
    ]
    first, second = (ray_run(config, steps=10) for config in configs)
    assert first[0] == second[0]
    assert np.array_equal(first[1], second[1])


@pytest.mark.slow  # of the stages, tests/roles/test_engine.py has the fast suite's
@pytest.mark.parametrize(("generators", "scores", "stage"), [(2, 2, 3), (2, 1, 1), (1, 2, 2), (4, 2, 0)])
def test_the_division_of_the_work_changes_rounding_alone(ray_session, world, generators, scores, stage):
    config = tiny_config(
        *world,
        f"roles.generator.workers={generators}",
        f"roles.score.workers={scores}",
        f"roles.generator.zero_stage={stage}",
        f"roles.score.zero_stage={stage}",
        "roles.generator.persistence_threshold=0",
        "roles.score.persistence_threshold=0",
    )
    assert_same(ray_run(config), plain_run(config), 1e-4)
