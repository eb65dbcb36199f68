"""The speed that a person reads: that of the stretch since its own beginning."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from dipp_ray.training import run
from dipp_ray.training.controller import StepResult
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

STEP_S = 0.5


@pytest.mark.parametrize("done", [0, 500])
def test_a_resumed_run_is_no_faster_than_it_was(tmp_path, monkeypatch, done):
    """Steps of before are no work of this stretch, nor is the first look."""
    pixart_pipeline(tmp_path / "teacher"), prompt_file(tmp_path / "prompts.parquet")
    config = tiny_config(tmp_path, tmp_path / "teacher", tmp_path / "prompts.parquet", "run.steps=1000")
    now = [100.0]

    def look(done):
        now[0] += 60
        return {}

    def steps(first, ends_after):
        for step in range(first, first + 4):
            now[0] += STEP_S
            yield StepResult(step, {}, {}, last=False)

    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    mine = run.Run(config, Mock(memory=Mock(lost=False, is_due=lambda done: False)), Mock(), print)
    monkeypatch.setattr(run.Run, "look", lambda _, done: look(done))
    monkeypatch.setattr(run.Run, "session", SimpleNamespace(run_until=steps))
    monkeypatch.setattr(run.Run, "tell", lambda *_: None)
    metrics = Mock()
    assert list(mine.stretch(done, metrics, Mock(), Mock(), Mock())) == [done + n for n in (1, 2, 3, 4)]
    written = [values["images_per_second"] for (_, values, _), _ in metrics.write.call_args_list[-4:]]
    assert written == pytest.approx([config.data.batch_size / STEP_S] * 4)
