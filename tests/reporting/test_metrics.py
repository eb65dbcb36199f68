import io
import json
import shutil

import pytest
import torch
from PIL import Image

from dipp_ray.errors import UserError
from dipp_ray.reporting.grid import save_grid
from dipp_ray.reporting.metrics import MetricsLog, grid_of, read_metrics
from dipp_ray.reporting.trackers.tensorboard import GRID_SIDE


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("reward")]


def test_a_killed_and_resumed_run_has_each_step_once(tmp_path):
    with MetricsLog(tmp_path, ["tensorboard"]) as log:
        for step in range(1, 8):
            log.write(step, {"reward": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "rew')  # killed while it wrote

    with MetricsLog(tmp_path, ["tensorboard"]) as log:
        log.resume(4)
        for step in range(5, 10):
            log.write(step, {"reward": step * 10.0})

    expected = [(step, float(step)) for step in range(1, 5)] + [(step, step * 10.0) for step in range(5, 10)]
    assert [(record["step"], record["reward"]) for record in read_metrics(tmp_path)] == expected
    assert scalars(tmp_path) == expected


def test_a_resumed_run_that_is_killed_again_has_each_step_once(tmp_path):
    for start, factor in ((1, 1.0), (3, 10.0), (2, 100.0)):
        log = MetricsLog(tmp_path, ["tensorboard"])  # never closed: killed
        log.resume(start - 1)
        for step in range(start, start + 5):
            log.write(step, {"reward": step * factor})
    expected = [(1, 1.0), *((step, step * 100.0) for step in range(2, 7))]
    assert [(record["step"], record["reward"]) for record in read_metrics(tmp_path)] == expected
    assert scalars(tmp_path) == expected


def test_a_deleted_tensorboard_folder_is_made_again(tmp_path):
    for start in (1, 4):
        with MetricsLog(tmp_path, ["tensorboard"]) as log:
            log.resume(start - 1)
            for step in range(start, start + 3):
                log.write(step, {"reward": float(step)})
        if start == 1:
            shutil.rmtree(tmp_path / "tensorboard")
    assert scalars(tmp_path) == [(step, float(step)) for step in range(1, 7)]


def grids(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return [(event.step, Image.open(io.BytesIO(event.encoded_image_string))) for event in events.Images("samples")]


def test_sample_grids_are_in_tensorboard_in_order_and_small(tmp_path):
    """Also after a resume, and when the folder was deleted and is made again."""
    for start in (0, 2, 4):
        with MetricsLog(tmp_path, ["tensorboard"]) as log:
            log.resume(start - 1)
            for step in range(start, start + 4):
                grid = save_grid(torch.rand(4, 3, 512, 512), grid_of(tmp_path, step), 2) if step % 2 == 0 else None
                log.write(step, {"reward": float(step)}, grid)
        seen = grids(tmp_path)
        assert [step for step, _ in seen] == list(range(0, start + 4, 2))
        assert all(picture.size == (GRID_SIDE, GRID_SIDE) and picture.mode == "RGB" for _, picture in seen)
        if start == 2:
            shutil.rmtree(tmp_path / "tensorboard")


def test_a_torn_last_line_does_not_spoil_the_next_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 1.0}\n{"step": 2')
    with MetricsLog(tmp_path) as log:
        log.write(2, {"reward": 2.0})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


def test_each_record_is_on_disk_when_write_returns(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"reward": 1.5})
    assert read_metrics(tmp_path)[0]["reward"] == 1.5
    log.close()
    assert not (tmp_path / "tensorboard").exists()


def test_values_that_are_not_finite_are_null(tmp_path):
    with MetricsLog(tmp_path, ["tensorboard"]) as log:
        log.write(1, {"reward": float("nan"), "score_gap": float("inf"), "best_step": 3})
    line = (tmp_path / "metrics.jsonl").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    record = json.loads(line, parse_constant=refuse)
    assert record["reward"] is None and record["score_gap"] is None and record["best_step"] == 3


def test_a_line_that_is_no_record_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        MetricsLog(tmp_path / "file")


@pytest.mark.filterwarnings("error")
def test_a_removed_folder_is_told_by_asking_and_not_made_again(tmp_path):
    folder = tmp_path / "run"
    with MetricsLog(folder, ["tensorboard"]) as log:
        log.write(1, {"reward": 1.0})
        assert log.stays
        shutil.rmtree(folder)
        log.write(2, {"reward": 2.0})
        assert not log.stays
    assert not folder.exists()


def test_a_folder_that_was_removed_before_the_first_record_is_not_made_again_by_a_tracker(tmp_path):
    folder = tmp_path / "run"
    with MetricsLog(folder, ["tensorboard"]) as log:
        shutil.rmtree(folder)
        log.write(1, {"reward": 1.0})
    assert not folder.exists()
