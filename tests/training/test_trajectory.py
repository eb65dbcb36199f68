"""What a run's record says of its trajectory: which settings belong to it, and what differs."""

import pytest
import yaml

from dipp_ray.config import load_config
from dipp_ray.storage.hashing import hash_of_json
from dipp_ray.training.trajectory import _of_format_1, difference, trajectory, trajectory_hash
from minimal import MINIMAL, REWARD


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    return file


def test_the_hash_of_a_configuration_never_changes(path):
    """Written down: with another hash the checkpoints of every run there is would be refused."""
    assert trajectory_hash(load_config(path)) == "0ae30a8164a785581083b8779c9c74ac6e1b8f02719b09a30e4d2609c7c23fa2"


@pytest.mark.parametrize(
    "override",
    [
        "run.seed=1",
        "run.deterministic=false",
        "model.t_star=441",
        "model.input=unit",
        "model.prediction=sample",
        "data.batch_size=48",
        "data.micro_batches=6",
        "data.prompts=other.parquet",
        "data.embeddings=embeddings",
        "data.order=epoch",
        "objective.guidance_scale=2",
        "objective.weight=unit",
        "objective.order=overlapped",
        "objective.score_times={distribution: logit_normal}",
        "objective.divergence_times.shift=3",
        "objective.score_updates=2",
        "generator_optim.lr=1e-3",
        "score_optim.grad_clip=1",
        "ema.decay=0.9",
        "init.score_warmup_steps=5",
        REWARD,
        "reward.standardise=true",
        "roles.score.dtype=bf16",
        "roles.text.dtype=bf16",
    ],
)
def test_the_hash_changes_with_the_trajectory(path, override):
    assert trajectory_hash(load_config(path, [override])) != trajectory_hash(load_config(path))


@pytest.mark.parametrize(
    "override",
    [
        "run.name=second",
        "run.folder=elsewhere",
        "run.steps=20",
        "roles.generator.workers=4",
        "roles.generator.zero_stage=3",
        "roles.score.persistence_threshold=0",
        "roles.teacher.workers=3",
        "roles.teacher.gpus=1",
        "roles.teacher.labels={role: teacher}",
        "roles.step_timeout_s=5",
        "reward.replicas=2",
        "reward.app=shared",
        "reward.deadline_s=1",
        "reward.checkpoint_decoder=true",
        "log.samples=4",
        "log.trackers=[wandb]",
        "checkpoint.every=7",
        "checkpoint.url=s3://bucket/run",
    ],
)
def test_the_hash_leaves_out_placement_logging_and_storage(path, override):
    config = load_config(path, [override])
    assert config != load_config(path) and trajectory_hash(config) == trajectory_hash(load_config(path))
    assert difference({"trajectory": trajectory(config)}, load_config(path)) is None


def test_what_differs_in_the_trajectory_is_named(path):
    before = {"trajectory": trajectory(load_config(path))}
    assert difference(before, load_config(path)) is None
    now = load_config(path, ["objective.guidance_scale=3", "roles.score.dtype=bf16"])
    assert difference(before, now) == "objective.guidance_scale was 1.5 and is 3.0"
    assert difference(before, load_config(path, ["roles.score.dtype=bf16"])) == 'dtype.score was "fp32" and is "bf16"'
    assert "is null" in difference({"trajectory": before["trajectory"] | {"new": {"kind": 1}}}, load_config(path))


def test_a_setting_that_is_younger_than_a_checkpoint_had_its_default(path):
    before = trajectory(load_config(path))
    del before["objective"]["guidance_scale"], before["init"]
    assert difference({"trajectory": before}, load_config(path)) is None
    changed = load_config(path, ["init.score_warmup_steps=5"])
    assert difference({"trajectory": before}, changed) == "init.score_warmup_steps was 0 and is 5"


def test_a_run_by_a_shared_service_is_known_when_a_setting_is_younger(path):
    shared = load_config(path, ["reward.app=rewards", "objective.reward_scale=2"])
    before = trajectory(shared)
    del before["objective"]["divisor_floor"]
    assert difference({"trajectory": before}, shared) is None
    by_http = load_config(path, ["reward.urls=[http://a:1]", "objective.reward_scale=2"])
    assert difference({"trajectory": before}, by_http) is None


JUDGE = "reward.terms=[{name: judge, model: server, held_out: true, server: {url: 'http://a:1/score', FIELDS}}]"


def judged(path, fields):
    return load_config(path, [JUDGE.replace("FIELDS", fields)])


def test_where_a_server_that_scores_lies_is_no_part_of_it(path):
    before = judged(path, "rows: 8, deadline_s: 60")
    now = load_config(path, [JUDGE.replace("a:1", "b:2").replace("FIELDS", "rows: 8, deadline_s: 5")])
    assert trajectory(now) == trajectory(before) and difference({"trajectory": trajectory(before)}, now) is None
    assert trajectory(now)["reward"]["terms"][0]["server"] == {"field": "scores", "rows": 8}
    other = judged(path, "rows: 8, field: rewards")
    assert "reward.terms was " in difference({"trajectory": trajectory(before)}, other)
    younger = trajectory(before)
    del younger["objective"]["divisor_floor"]
    assert difference({"trajectory": younger}, now) is None, "with a setting that is younger"


def test_a_record_that_says_where_a_server_lay_goes_on(path):
    before = trajectory(judged(path, "rows: 8"))
    before["reward"]["terms"][0]["server"] |= {"url": "http://gone:1", "deadline_s": 60.0}
    assert difference({"trajectory": before}, judged(path, "rows: 8, deadline_s: 5")) is None
    assert "reward.terms was " in difference({"trajectory": before}, judged(path, "rows: 4"))


def test_the_first_formats_hash_stays_when_settings_are_added(path, monkeypatch):
    config, now = load_config(path, [REWARD]), trajectory(load_config(path, [REWARD]))
    expected = trajectory_hash(config)
    now["objective"]["added_later"], now["model"]["family"], now["later"] = 1, None, {}
    now["reward"]["terms"][0]["newer"] = 2
    monkeypatch.setattr("dipp_ray.training.trajectory.trajectory", lambda config: now)
    assert trajectory_hash(config) == expected


def test_a_record_of_the_first_format_is_known_by_its_hash(path):
    config = load_config(path)
    assert difference({"trajectory_hash": trajectory_hash(config)}, config) is None
    assert "other settings" in difference({"trajectory_hash": "0" * 64}, config)
    assert "other settings" in difference({}, config)


def test_a_record_with_paths_from_here_goes_on(path, monkeypatch, tmp_path):
    """As they were written before paths were made absolute."""
    config = load_config(path, [REWARD])
    before = trajectory(config)
    before["model"]["teacher"], before["data"]["prompts"] = "teacher", "prompts.parquet"
    before["reward"]["terms"][0]["folder"] = "reward"
    assert difference({"trajectory": before}, config) is None
    hashed = hash_of_json(_of_format_1(before))
    assert difference({"trajectory_hash": hashed}, config) is None
    assert difference({"trajectory_hash": hash_of_json(_of_format_1(trajectory(config)))}, config) is None
    monkeypatch.chdir(tmp_path)
    assert "model.teacher was" in difference({"trajectory": before}, config)
    assert "other settings" in difference({"trajectory_hash": hashed}, config)
