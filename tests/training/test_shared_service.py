"""A run that calls a shared reward service, by handle or by HTTP, is the same run to the bit."""

import re

import numpy as np
import pytest
import resumed_run
import torch
from ray import serve
from test_parity import COMPARED, assert_same, plain_run, ray_run
from test_run import TERMS, kill_rank_during, kills_change_nothing, on_first_task_of

from dipp_ray.alignment.questions import generate
from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.data.prompts import read_prompts
from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.errors import UserError
from dipp_ray.evaluation.rewards import scorer_of
from dipp_ray.reporting.events import read_events
from dipp_ray.reporting.metrics import read_metrics
from dipp_ray.reporting.progress import ProgressLine
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.serving.deploy.lifecycle import await_rewards, deploy_rewards, stop_rewards
from dipp_ray.training.plain import plain_loop
from dipp_ray.training.train import train
from dipp_ray.training.trajectory import difference
from settings import tiny_config
from tiny import PROMPTS, pixart_pipeline, prompt_file

STEPS = 6
AWAY_S = 600


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    return folder, pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")


def deploy(world):
    models = [{**term, "role": {"cpus": 0.1}} for term in TERMS]
    config = ServiceConfig.model_validate(
        {"name": "shared", "models": models, "vae": str(world[1]), "deterministic": True, "batch_rows": 16}
    )
    deploy_rewards(config, "/")


@pytest.fixture(scope="module")
def shared(serve_url, world):
    deploy(world)
    await_rewards("shared", 120, print)
    yield serve_url
    stop_rewards("shared")


def config_of(world, *settings, **reward):
    return tiny_config(*world, "run.steps=8", f"reward={reward}", *settings)


def run(world, **reward):
    return ray_run(config_of(world, **reward), STEPS)


def read_prompts_of(config):
    return read_prompts(config.data.prompts, config.data.column)


def average_x0(loop):
    """x0 of the plain loop's generator on the evaluation's first eight noises and prompts."""
    draws = Draws(loop.config.run.seed, EVALUATION, 0, range(8))
    with torch.no_grad():
        z = draws.normal("z", loop.latent_shape)
        return generate(loop.generator.network, loop.one_step, z, loop.text(loop.prompts.first(8))).numpy()


@pytest.mark.parametrize("format_", [1, 2])
def test_a_checkpoint_of_either_format_is_known_and_another_trajectory_refused(tmp_path, format_):
    config = resumed_run.config_of(tmp_path, "known")
    resumed_run.lay_out(config, format_)
    store = CheckpointStore(config.path / "checkpoints")
    assert store.latest(lambda record: difference(record, config), thorough=True).step == 3
    other = resumed_run.config_of(tmp_path, "known", "objective.guidance_scale=3")
    reason = "guidance_scale was 1.5 and is 3.0" if format_ == 2 else "other settings"
    with pytest.raises(UserError, match=reason):
        store.latest(lambda record: difference(record, other))


@pytest.mark.slow
def test_killed_and_resumed_by_http_it_is_the_uninterrupted_run_by_handle(shared, world):
    settings = ["reward.standardise=true", "init.score_warmup_steps=2"]
    by_handle, by_http = ([*settings, f"reward.{way}"] for way in ("app=shared", f"urls=[{shared}]"))
    kills_change_nothing(world, "shared", by_handle, [*by_http, "checkpoint.memory_every=2"])
    assert "shared" in serve.status().applications  # it belongs to nobody's run


@pytest.fixture(scope="module")
def by_handle(shared, world):
    return run(world, app="shared")


def test_by_handle_it_is_the_plain_loop(by_handle, world):
    assert_same(by_handle, plain_run(config_of(world, terms=TERMS[:1]), STEPS), 1e-5)


@pytest.mark.slow
def test_a_service_that_is_away_for_ten_minutes_costs_its_trainer_time_and_no_step(shared, by_handle, world):
    """It is ended in the middle of a step, and started again when the trainer has waited for so long."""
    config = config_of(
        world, "run.name=away", f"run.steps={STEPS}", "log.samples_every=100", urls=[shared], deadline_s=2.0
    )
    said, gone = [], []

    def heard(line):
        said.append(line)
        told = re.search(r"given no answer for (\d+) s", line)
        if told and int(told[1]) >= AWAY_S and len(gone) == 1:
            gone.append(deploy(world))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dipp_ray.training.away.SAY_EVERY_S", 1.0)
        patched.setattr(ProgressLine, "say", lambda _, text: heard(text))
        on_first_task_of(3, lambda controller: gone.append(stop_rewards("shared")), patched)
        train(config, heard)
    assert len(gone) == 2
    assert any("the run pauses until it does, up to 1800 s (reward.away_s)" in line for line in said)
    (again,) = [int(line.split()[6]) for line in said if line.endswith("s; no step is lost")]
    assert again >= AWAY_S
    assert not read_events(config.path), "nothing was recovered from"
    assert measured_of(config) == [{key: measured[key] for key in COMPARED} for measured in by_handle[0]]


def measured_of(config):
    records = [record for record in read_metrics(config.path) if record["step"] > 0]
    return [{key: record[key] for key in COMPARED} for record in records]


def test_a_rank_that_is_killed_comes_back_from_memory_and_all_is_as_it_would_have_been(by_handle, world):
    """One fault of those of jobs/chaos.py; nothing is committed before, and no storage is read."""
    settings = ("run.name=killed", "checkpoint={every: 100, memory_every: 1}", "log.samples_every=100")
    config, said, read = config_of(world, f"run.steps={STEPS}", *settings, app="shared"), [], []
    latest = CheckpointStore.latest
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ProgressLine, "say", lambda _, text: said.append(text))
        patched.setattr(CheckpointStore, "latest", lambda *given, **how: read.append(1) or latest(*given, **how))
        kill_rank_during(4, patched)
        train(config, said.append)
    assert len(read) == 1, "by the command, before it began"
    (goes_on,) = [line for line in said if line.startswith("goes on from step ")]
    assert 1 <= int(goes_on.split()[4]) <= 4, goes_on  # the last share may have been on its way
    assert [event["event"] for event in read_events(config.path)] == ["fault", "recovered"]
    assert measured_of(config) == [{key: measured[key] for key in COMPARED} for measured in by_handle[0]]


def test_a_checkpoint_of_old_resumes_to_the_figures_of_old(shared, tmp_path):
    config = resumed_run.config_of(tmp_path, "old", "reward.app=shared")
    resumed_run.lay_out(config, format_=2)
    said = []
    train(config, said.append)
    assert "resumed from the checkpoint of step 3" in said
    records = read_metrics(config.path)
    assert [record["step"] for record in records] == [4, 5, 6]
    for now, then in zip(records, resumed_run.measured(), strict=True):
        assert {key: now[key] for key in then} == pytest.approx(then, rel=1e-3, abs=1e-5)
    store = CheckpointStore(config.path / "checkpoints")
    state, _ = store.read_group(store.latest(), "generator")
    loop = plain_loop(config.model_copy(update={"reward": type(config.reward)()}), read_prompts_of(config))
    loop.generator.network.network.load_state_dict(
        {name.removeprefix("ema/"): value for name, value in state.items() if name.startswith("ema/")}, strict=False
    )
    expected = resumed_run.average_x0()
    x0 = average_x0(loop)
    np.testing.assert_allclose(x0, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


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
