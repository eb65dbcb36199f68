"""What the run does beside each step, from one barrier to the next: what it tells, and what it keeps."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from dipp_ray.reporting.telemetry import METRICS
from dipp_ray.training import run as module
from dipp_ray.training.controller import StepResult, covered
from dipp_ray.training.run import Run
from dipp_ray.training.sizes import Sizes
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

STEP_S = 0.5


class Memory:
    """lost_at: the finished steps at which a keeper is lost; `did`: what was asked of it and of the ranks."""

    def __init__(self):
        self.every, self.lost, self.complete, self.lost_at, self.did = 2, False, 0, None, []

    def is_due(self, done):
        return done % self.every == 0

    def attach(self, actors, say):
        self.did.append("attach")
        self.lost = False


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A run of four steps, each of STEP_S, after a look of a minute, and its memory."""
    pixart_pipeline(tmp_path / "teacher"), prompt_file(tmp_path / "prompts.parquet")
    config = tiny_config(tmp_path, tmp_path / "teacher", tmp_path / "prompts.parquet", "run.steps=1000")
    now, memory = [100.0], Memory()

    def look(run, done):
        now[0] += 60
        return {}

    def steps(first, ends_after):
        for step in range(first, first + 4):
            now[0] += STEP_S
            memory.lost = step + 1 == memory.lost_at
            yield StepResult(step, {"keep_seconds": 0.25}, {"score": STEP_S / 2}, last=memory.lost)
            if memory.did:
                return

    controller = SimpleNamespace(actors=None, keep_now=lambda done: memory.did.append(f"keep {done}"))
    session = SimpleNamespace(run_until=steps, controller=controller, sizes=Sizes(1, 1, 1))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(Run, "look", look)
    monkeypatch.setattr(Run, "session", session)
    run = Run(config, Mock(memory=memory), Mock(), print)
    run.saver = Mock(saved=0, held_up=0.0, writes_best=False)
    return run, memory


@pytest.mark.parametrize("done", [0, 500])
def test_a_resumed_run_is_no_faster_than_it_was(world, done):
    """Steps of before are no work of this stretch, nor is the first look."""
    run, _ = world
    metrics = Mock()
    assert list(run.stretch(done, metrics, Mock(), Mock(), Mock())) == [done + n for n in (1, 2, 3, 4)]
    written = [call.args[1]["images_per_second"] for call in metrics.write.call_args_list[-4:]]
    assert written == pytest.approx([run.config.data.batch_size / STEP_S] * 4)


def test_who_watches_the_cluster_is_told_of_each_step(world):
    run, memory = world
    run.saver.saved, memory.complete = 501, 502
    list(run.stretch(500, Mock(), Mock(), Mock(), Mock()))
    calls = run.sessions.telemetry.method_calls[-7:]
    told = {call.args[0]: call.args[1:] for call in calls if call[0] in ("set", "add")}
    assert told.keys() <= METRICS.keys()
    assert told["dipp_ray_step"] == (504,) and told["dipp_ray_keep_seconds"] == (0.25,)
    assert told["dipp_ray_state_age_steps"] == (2,), "what has arrived counts, not what is on its way"
    (busy,) = [call.args for call in calls if call[0] == "busy"]
    assert busy[0] == {"score": STEP_S / 2} and busy[1]["score"] == 1 and busy[2] == pytest.approx(STEP_S)


def test_where_a_keeper_is_lost_the_state_is_kept_anew_at_once(world):
    run, memory = world
    memory.lost_at = 503
    assert list(run.stretch(500, Mock(), Mock(), Mock(), Mock())) == [501, 502, 503]
    assert memory.did == ["attach", "keep 503"] and 503 in run.states


def test_answers_that_are_waited_for_at_once_are_busy_once():
    assert covered([(0, 2), (1, 3), (5, 6), (5.5, 5.75)]) == 4
