"""jobs/distil.py and jobs/align.py: what they refuse, and a distillation and an alignment of it from end to end."""

import json
import os

import pytest
import yaml

from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

SHORT = ("run.steps=2", "evaluation.samples=10", "evaluation.teacher_steps=2", "log.held_out_samples=4")


@pytest.fixture
def config_file(tmp_path):
    pipeline, prompts = pixart_pipeline(tmp_path / "pipeline"), prompt_file(tmp_path / "prompts.parquet")
    config = tiny_config(tmp_path / "runs", pipeline, prompts, *SHORT)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


@pytest.fixture
def run_script(script):
    def run(name, *arguments):
        module = script(name)
        return module.entry.main(module.__doc__, module.refuse, list(map(str, arguments)))

    return run


@pytest.mark.parametrize(
    ("name", "scale", "sentence"),
    [
        ("distil", 2, "distil.py: objective.reward_scale=2 is alignment: use jobs/align.py"),
        ("align", 0, "align.py: objective.reward_scale=0 is distillation: use jobs/distil.py"),
    ],
)
def test_each_refuses_the_others_work(run_script, config_file, capsys, name, scale, sentence):
    assert run_script(name, config_file, f"objective.reward_scale={scale}") == 2
    assert sentence in capsys.readouterr().err
    assert not (config_file.parent / "runs").exists()


def test_a_job_is_told_that_its_results_would_be_lost(run_script, config_file, capsys, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert run_script("align", config_file, "run.folder=runs") == 2
    assert "give s3://, or an absolute path elsewhere" in capsys.readouterr().err
    assert run_script("align", config_file, f"run.folder={os.getcwd()}/runs") == 2
    assert "give s3://, or an absolute path elsewhere" in capsys.readouterr().err


def test_bad_input_is_one_sentence(run_script, config_file, capsys):
    assert run_script("align", config_file, "objective.order=sideways") == 2
    assert run_script("align", config_file.parent / "none.yaml") == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_run_is_taken_up_where_it_ended(run_script, config_file, script, monkeypatch):
    """What `dipp-ray train` is given: the configuration, the settings, and those of --generator after them."""
    given = []
    monkeypatch.setattr(script("align").entry.cli, "main", lambda arguments: given.append(arguments) or 0)
    assert run_script("align", config_file, "run.steps=3", "--generator", "runs/first/", "run.seed=1") == 0
    settings = ["model.generator=runs/first/pipeline", "init.score=checkpoint", "init.score_checkpoint=runs/first"]
    assert given == [["train", str(config_file), "run.steps=3", "run.seed=1", *settings]]


VERBS = {"evaluate": "evaluate", "encode": "encode", "fit_reward": "fit-reward"}


@pytest.fixture
def run_verb(script, monkeypatch):
    """`run_verb("evaluate", ...)` runs that script's work; what it would give to the command line is in `.given`."""

    def run(name, *arguments):
        module = script(name)
        monkeypatch.setattr(module.entry.cli, "main", lambda arguments: run.given.append(arguments) or 0)
        return module.entry.verb(VERBS[name], module.results, list(map(str, arguments)))

    run.given = []
    return run


@pytest.mark.parametrize(
    ("name", "lost", "kept"),
    [
        ("evaluate", ["/data/run/pipeline", "--out", "here"], ["/data/run/pipeline", "--out", "/data/out"]),
        ("evaluate", ["runs/a/pipeline"], ["/data/run/pipeline", "--against", "org/name"]),
        ("encode", ["{fit}", "here"], ["{fit}", "s3://bucket/embeddings", "--rows", "64", "run.seed=1"]),
        ("fit_reward", ["{fit}", "out=here"], ["{fit}", "out=/data/reward"]),
    ],
)
def test_other_verbs_results_are_not_lost_with_the_job(run_verb, tmp_path, capsys, monkeypatch, name, lost, kept):
    (tmp_path / "fit.yaml").write_text("{base: /models/clip, pairs: /data/pairs.jsonl, out: /data/x}")
    lost, kept = ([word.format(fit=tmp_path / "fit.yaml") for word in words] for words in (lost, kept))
    assert run_verb(name, *lost) == 0 and run_verb.given.pop() == [VERBS[name], *lost]  # no job
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert run_verb(name, *lost) == 2 and not run_verb.given
    assert "lies in the job's copy" in capsys.readouterr().err
    assert run_verb(name, *kept) == 0 and run_verb.given == [[VERBS[name], *kept]]


def test_a_fit_that_cannot_be_read_is_one_sentence(run_verb, capsys, tmp_path):
    assert run_verb("fit_reward", tmp_path / "none.yaml") == 2
    assert capsys.readouterr().err.startswith("fit_reward.py: configuration ")


def test_a_folder_of_s3_outlives_the_job(script, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    lost = script("align").entry.lost_with_the_job
    assert lost("out", "s3://bucket/prompts") is None and lost("out", "s3") is not None


@pytest.mark.slow
def test_distilled_then_aligned(ray_session, run_script, config_file):
    runs = config_file.parent / "runs"
    assert run_script("distil", config_file, "objective.reward_scale=0", "run.name=distilled") == 0
    assert run_script("align", config_file, "run.name=aligned", "--generator", runs / "distilled") == 0
    aligned = yaml.safe_load((runs / "aligned" / "config.yaml").read_text())
    assert aligned["model"]["generator"] == f"{runs}/distilled/pipeline"
    assert aligned["init"]["score_checkpoint"] == f"{runs}/distilled"
    evaluation = json.loads((runs / "aligned" / "evaluation.json").read_text())
    assert list(evaluation["models"]) == ["base", "aligned", "teacher"]
    assert (runs / "aligned" / "report.html").is_file()
