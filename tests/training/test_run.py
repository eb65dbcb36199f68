"""A whole run on the tiny pipeline: its folder, its export, and interrupted and resumed against uninterrupted."""

import os
import shutil
import signal

import pytest
import ray
import torch

from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.errors import NonFiniteError, RoleFailure, RunFolderLost, UserError
from dipp_ray.models.plain_pipeline import load_pipeline
from dipp_ray.reporting.metrics import read_metrics
from dipp_ray.reporting.progress import ProgressLine
from dipp_ray.training.contents import contents_of
from dipp_ray.training.controller import Controller
from dipp_ray.training.train import train
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

MEASURED = ("score_loss", "score_gap", "reward", "grad_norm/generator", "grad_norm/score", "held_out/gold")


TERMS = [
    {"name": "ink", "model": "settings:InkReward", "weight": 0.5},
    {"name": "gold", "model": "settings:InkReward", "held_out": True},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")


def config_of(world, name, *overrides):
    return tiny_config(
        *world,
        f"run.name={name}",
        "run.steps=8",
        "checkpoint.every=3",
        "log.samples_every=6",
        f"reward.terms={TERMS}",
        *overrides,
    )


def measured(folder):
    return [{key: record.get(key) for key in ("step", *MEASURED)} for record in read_metrics(folder)]


def final_state(folder):
    store = CheckpointStore(folder / "checkpoints")
    latest = store.latest()
    return {group: store.read_group(latest, group)[0] for group in ("generator", "score")}


def on_first_task_of(step, action, monkeypatch):
    """Do `action(controller)` when the first task of `step` is sent, while the step is in flight."""
    send, done = Controller.send, []

    def send_and_act(self, task, index, answers):
        if task.key.step == step and task.key.action == "guide" and not done:
            done.append(action(self))
        return send(self, task, index, answers)

    monkeypatch.setattr(Controller, "send", send_and_act)


def stop_during(step, monkeypatch, number=signal.SIGINT):
    """Send this process a signal while `step` is in flight, as a person's Ctrl-C would come."""
    on_first_task_of(step, lambda _: os.kill(os.getpid(), number), monkeypatch)


def kill_rank_during(step, monkeypatch):
    """Kill the generator's process, as an out-of-memory killer would, while `step` is in flight."""
    on_first_task_of(step, lambda controller: ray.kill(controller.actors.of("generator", 0)), monkeypatch)


def stopped(config, end, error, reached, said):
    """Train until `end` happens; the checkpoint that is left is that of step `reached`."""
    with pytest.MonkeyPatch.context() as patched:
        end(patched)
        with pytest.raises(error):
            train(config, said.append)
    assert CheckpointStore(config.path / "checkpoints").latest().step == reached


def kills_change_nothing(world, name, straight_settings, stopped_settings):
    """A run in one go, and one that is killed, interrupted and begun again: their figures and weights, to the bit."""
    straight = train(config_of(world, f"straight-{name}", *straight_settings))
    assert [record["step"] for record in read_metrics(straight)] == list(range(9))
    assert {path.name for path in straight.iterdir()} >= {"config.yaml", "metrics.jsonl", "samples", "pipeline"}
    assert len(list((straight / "samples").glob("step_*.png"))) == 4  # 0, 3, 6, 8

    config, said = config_of(world, f"stopped-{name}", *stopped_settings), []

    def kill_then_stop(patched):
        patched.setattr(ProgressLine, "say", lambda _, text: said.append(text))
        kill_rank_during(4, patched)
        stop_during(5, patched)

    # A kill falls back to the last committed checkpoint; an interrupt leaves one of a step after the one in hand.
    stopped(config, kill_then_stop, KeyboardInterrupt, 7, said)
    (recovered,) = [line for line in said if line.startswith("recovering")]
    assert recovered.startswith("recovering from a fault after step 3: generator rank 0 died"), recovered
    assert recovered.endswith("(1 of 3 in a row; 1 faults and 0 preemptions so far)")
    (goes_on,) = [line for line in said if line.startswith("goes on")]
    assert goes_on in {f"goes on from step {step} with 1 generator and 1 score model ranks" for step in (3, 4)}
    resumed = train(config, said.append)
    assert [line for line in said if "resumed" in line] == ["resumed from the checkpoint of step 7"]

    assert measured(resumed) == measured(straight)
    ours, theirs = final_state(resumed), final_state(straight)
    for group in theirs:
        assert ours[group].keys() == theirs[group].keys()
        assert all(torch.equal(ours[group][name], theirs[group][name]) for name in theirs[group])

    plain = load_pipeline(straight / "pipeline")
    image = plain.pipeline("a bold two", **plain.arguments()).images[0]
    assert image.size == (8, 8)
    assert "num_inference_steps=1" in (straight / "pipeline" / "README.md").read_text()
    looked = {record["step"]: record["held_out/gold"] for record in read_metrics(straight) if "held_out/gold" in record}
    best, marked = max(looked, key=lambda step: looked[step]), CheckpointStore(straight / "checkpoints").best()
    assert list(looked) == [0, 3, 6, 8] and (marked.step if marked else 0) == best  # the start competes
    assert all("from_start_within/gold" in record for record in read_metrics(straight) if record["step"] in (3, 6, 8))

    record = CheckpointStore(straight / "checkpoints").latest().record
    assert record["contents"] == contents_of(record["trajectory"]) and "model.teacher" in record["contents"]
    with pytest.raises(UserError, match=r"choose another run\.name"):
        train(config_of(world, f"straight-{name}", *straight_settings, "objective.guidance_scale=3"))


# With a shared service, in the fast suite: test_shared_service.py.
@pytest.mark.slow
@pytest.mark.parametrize("order", ["overlapped", "strict"])
def test_killed_interrupted_and_resumed_equals_uninterrupted(ray_session, world, order):
    settings = [f"objective.order={order}", "reward.standardise=true", "init.score_warmup_steps=2"]
    kills_change_nothing(world, order, settings, settings)


@pytest.mark.slow
def test_a_fault_that_comes_again_ends_the_run(ray_session, world):
    """What kills a rank at the same step each time is no accident: the run ends and can be resumed."""
    config, said = config_of(world, "again", "roles.failures=1", "reward.terms=[]", "objective.reward_scale=0"), []
    send = Controller.send

    def send_and_kill(self, task, index, answers):
        if task.key.step == 4 and task.key.action == "guide":
            ray.kill(self.actors.of("score", 0))
        return send(self, task, index, answers)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Controller, "send", send_and_kill)
        patched.setattr(ProgressLine, "say", lambda _, text: said.append(text))
        with pytest.raises(RoleFailure, match=r"score model rank 0 died.*the same command goes on"):
            train(config, said.append)
    assert len([line for line in said if line.startswith("recovering")]) == 1
    assert CheckpointStore(config.path / "checkpoints").latest().step == 3


@pytest.mark.slow
def test_a_reward_that_is_not_finite_stops_the_run_and_loses_nothing(ray_session, world):
    config = config_of(world, "nan", "reward.terms=[{name: broken, model: 'settings:BrokenReward'}]")
    with pytest.raises(NonFiniteError, match=r"broken.*not finite.*; nothing is saved yet: the same command begins"):
        train(config)
    assert CheckpointStore(config.path / "checkpoints").latest() is None


@pytest.mark.slow
def test_dropped_rewards_are_counted_and_the_run_goes_on(ray_session, world):
    terms = "reward.terms=[{name: broken, model: 'settings:BrokenReward'}]"
    folder = train(config_of(world, "drop", terms, "reward.on_nonfinite=drop", "run.steps=1"))
    assert read_metrics(folder)[-1]["reward_dropped"] > 0


@pytest.mark.slow
def test_a_folder_that_is_removed_ends_the_run_at_the_next_barrier(ray_session, world, tmp_path):
    elsewhere = tmp_path / "checkpoints"
    config, said = config_of(world, "gone", f"checkpoint.url={elsewhere}", "log.trackers=[tensorboard]"), []
    with pytest.MonkeyPatch.context() as patched:
        on_first_task_of(4, lambda _: shutil.rmtree(config.path), patched)
        with pytest.raises(RunFolderLost, match=r"gone was removed .*\(seen after step 6\): its checkpoints in"):
            train(config, said.append)
    assert not config.path.exists()  # nothing was written there again
    assert CheckpointStore(str(elsewhere)).latest().step == 3
    train(config, said.append)
    assert "resumed from the checkpoint of step 3" in said
    assert [record["step"] for record in read_metrics(config.path)] == [4, 5, 6, 7, 8]
