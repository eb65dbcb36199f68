"""Whatever works in Ray watches the head meanwhile, and says how it goes on where that is lost."""

from contextlib import contextmanager

import pytest
import yaml

from dipp_ray import cli, verbs
from dipp_ray.training import machine, placement
from dipp_ray.training.plan import Node
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file


@pytest.fixture
def seen(monkeypatch):
    """What happened: "connected", what is said where the head is lost, and what was done within."""
    found = []

    @contextmanager
    def watched_head(say, goes_on):
        found.append(goes_on)
        yield
        found.append("left")

    monkeypatch.setattr(verbs, "connect", lambda: found.append("connected"))
    monkeypatch.setattr("dipp_ray.head.watched_head", watched_head)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return found


@pytest.fixture
def run_file(tmp_path):
    pixart_pipeline(tmp_path / "teacher"), prompt_file(tmp_path / "prompts.parquet")
    config = tiny_config(tmp_path / "run", tmp_path / "teacher", tmp_path / "prompts.parquet")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return tmp_path / "run.yaml"


def test_encode(seen, run_file, tmp_path, monkeypatch):
    @contextmanager
    def placed(config, count, say):
        yield [seen.append("encoders")]

    def encode(config, folder, encoders, *_):
        with encoders(config):
            seen.append("encoded")

    monkeypatch.setattr("dipp_ray.encoding.placed.placed_encoders", placed)
    monkeypatch.setattr("dipp_ray.encoding.command.encode", encode)
    assert cli.main(["encode", str(run_file), str(tmp_path / "out")]) == 0
    goes_on = "the same command goes on with the shards that are missing"
    assert seen == ["connected", goes_on, "encoders", "encoded", "left"]


def test_evaluate(seen, tmp_path, monkeypatch):
    def command(pipeline, against, config, out, settings, say, joined, placed):
        with joined():
            seen.append("evaluated")

    monkeypatch.setattr("dipp_ray.evaluation.folders.require_pipeline", lambda folder: None)
    monkeypatch.setattr("dipp_ray.evaluation.evaluate.evaluate_command", command)
    assert cli.main(["evaluate", str(tmp_path)]) == 0
    goes_on = "the same command goes on with the images that are missing"
    assert seen == ["connected", goes_on, "evaluated", "left"]


def test_check_that_tries(seen, run_file, monkeypatch):
    monkeypatch.setattr("dipp_ray.training.reward_trial.try_rewards", lambda *_: seen.append("tried"))
    assert cli.main(["check", str(run_file)]) == 0 and seen == []
    assert cli.main(["check", str(run_file), "--try"]) == 0
    assert seen == ["connected", "start it anew, and the same command checks again", "tried", "left"]


def test_check_asks_the_cluster_that_there_is(seen, run_file, monkeypatch, capsys):
    def nodes():
        seen.append("asked")
        return [Node("a1", "far", {"CPU": 64.0})]

    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    monkeypatch.setattr(placement, "cluster_nodes", nodes)
    monkeypatch.setattr(machine, "this_machine", lambda: pytest.fail("planned for this machine"))
    assert cli.main(["check", str(run_file)]) == 0
    assert seen == ["connected", "start it anew, and the same command checks again", "asked", "left"]
    told = " ".join(capsys.readouterr().out.split())
    assert "node far" in told and "planned for this machine" not in told
    assert cli.main(["check", str(run_file), "roles.teacher.cpus=65"]) == 2


def test_serve_rewards(seen, tmp_path, monkeypatch):
    (tmp_path / "service.yaml").write_text("models: [{name: mean, model: 'tiny_models:Brightness'}]")
    monkeypatch.setattr("dipp_ray.serving.deploy.listening.require_port", lambda http: None)
    monkeypatch.setattr("dipp_ray.training.service_room.require_room", lambda config: seen.append("room"))
    monkeypatch.setattr("dipp_ray.serving.deploy.command.serve_rewards", lambda *_: seen.append("served"))
    assert cli.main(["serve-rewards", str(tmp_path / "service.yaml")]) == 0
    goes_on = "the service is lost with it, and the same command begins it again"
    assert seen == ["connected", goes_on, "room", "served", "left"]
