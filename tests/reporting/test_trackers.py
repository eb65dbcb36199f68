"""Trackers by stand-ins, and each by its own package where that is installed."""

import json
import math
import os
import re
import shutil
import struct
import sys
import threading

import pytest
import torch
import yaml

from dipp_ray.errors import UserError
from dipp_ray.reporting import trackers
from dipp_ray.reporting.grid import save_grid
from dipp_ray.reporting.metrics import MetricsLog, grid_of, read_metrics
from dipp_ray.reporting.trackers import behind, require_trackers
from dipp_ray.training.checks import check
from settings import tiny_config


class Told:
    """A tracker that keeps what it is told, and fails or waits where a test says so."""

    PACKAGE, REMOTE = "json", False
    told: list = []  # noqa: RUF012
    fresh, fails_at, waits = False, None, None

    def __init__(self, folder, first_step):
        if self.fails_at == "open":
            raise ConnectionError("no  route")
        self.told.append(("open", first_step))

    @staticmethod
    def check():
        raise UserError("it was asked")

    def write(self, record, grid):
        if self.waits is not None:
            self.waits.wait()
        if record["step"] == self.fails_at:
            raise ConnectionError("server away")
        self.told.append((record["step"], record.get("reward"), grid and grid.name))

    def close(self):
        self.told.append("close")


class Remote(Told):
    REMOTE = True


@pytest.fixture(params=[Told, Remote])
def tracker(request, monkeypatch):
    """A class of a tracker that is called `stand-in`, and what instances of it are told."""
    monkeypatch.setattr(request.param, "told", [], raising=False)
    for name in ("fresh", "fails_at", "waits"):
        monkeypatch.setattr(request.param, name, getattr(Told, name), raising=False)
    monkeypatch.setitem(trackers.CLASSES, "stand-in", ("test_trackers", request.param.__name__))
    return request.param


def steps(log, *numbers):
    for step in numbers:
        log.write(step, {"reward": float(step)})


def test_a_tracker_is_told_each_record_and_grid_once_and_closed(tracker, tmp_path):
    with MetricsLog(tmp_path, ["stand-in"]) as log:
        log.resume(-1)
        log.write(0, {"reward": math.nan}, tmp_path / "grid.png")
        steps(log, 1)
    assert tracker.told == [("open", 0), (0, None, "grid.png"), (1, 1.0, None), "close"]
    with MetricsLog(tmp_path, ["stand-in"]) as log:
        log.resume(0)
        steps(log, 1)
    assert tracker.told[4:] == [("open", 1), (1, 1.0, None), "close"]


def test_one_that_knows_nothing_of_the_run_is_told_the_past_first(tracker, tmp_path):
    tracker.fresh = True
    with MetricsLog(tmp_path) as log:
        save_grid(torch.rand(1, 3, 8, 8), grid_of(tmp_path, 0), 1)
        steps(log, 0, 1, 2)
    with MetricsLog(tmp_path, ["stand-in"]) as log:
        log.resume(1)
        steps(log, 2)
    past = [(0, 0.0, "step_000000.png"), (1, 1.0, None), (2, 2.0, None)]
    assert tracker.told == [("open", 2), *past, "close"]


@pytest.mark.parametrize(("fails_at", "said"), [("open", "open (no route)"), (2, "write step 2 (server away)")])
def test_one_that_fails_is_said_once_and_ends_nothing(tracker, tmp_path, fails_at, said):
    tracker.fails_at, lines = fails_at, []
    with MetricsLog(tmp_path, ["stand-in"], lines.append) as log:
        steps(log, 1, 2, 3)
        log.resume(3)  # a run that recovers asks it no more
        steps(log, 4)
    whole = f"stand-in could not {said}: the run goes on without it, and metrics.jsonl has everything"
    assert lines == [whole] and tracker.told == ([] if fails_at == "open" else [("open", None), (1, 1.0, None)])
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_the_others_are_told_on(tracker, tmp_path, monkeypatch):
    monkeypatch.setattr(Other, "told", [])
    monkeypatch.setitem(trackers.CLASSES, "other", ("test_trackers", "Other"))
    tracker.fails_at, lines = 1, []
    with MetricsLog(tmp_path, ["stand-in", "other"], lines.append) as log:
        steps(log, 1, 2)
    assert Other.told == [("open", None), (1, 1.0, None), (2, 2.0, None), "close"] and len(lines) == 1


class Other(Told):
    """A second one, which never fails."""

    fails_at = None


def test_a_server_that_does_not_answer_holds_up_no_step_and_no_end(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.CLASSES, "stand-in", ("test_trackers", "Remote"))
    monkeypatch.setattr(Remote, "told", [], raising=False)
    waits = threading.Event()
    monkeypatch.setattr(Remote, "waits", waits, raising=False)
    monkeypatch.setattr(behind, "CLOSE_S", 0.2)
    lines = []
    with MetricsLog(tmp_path, ["stand-in"], lines.append) as log:
        steps(log, 1, 2, 3)  # returns though nothing was told yet
    assert len(read_metrics(tmp_path)) == 3 and len(lines) == 1
    assert "could not close (not done after 0.2 s)" in lines[0]
    waits.set()


def test_a_tracker_that_is_not_installed_is_one_sentence(monkeypatch, tmp_path):
    for name in ("tensorboard", "wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=rf"{name} is not installed: pip install 'dipp-ray\[{name}\]', or leave"):
            require_trackers([name])


def test_a_run_is_told_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed"):
        check(tiny_config(tmp_path, tmp_path / "nowhere", tmp_path / "nothing", "log.trackers=[wandb]"))


def test_a_folder_of_that_name_is_no_package_and_a_broken_one_is_told(monkeypatch, tmp_path, tracker):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "left_by_a_tracker").mkdir()
    monkeypatch.setattr(tracker, "PACKAGE", "left_by_a_tracker")
    with pytest.raises(UserError, match="stand-in is not installed"):
        require_trackers(["stand-in"])
    (tmp_path / "broken_tracker.py").write_text("raise RuntimeError('half of it')")
    monkeypatch.setattr(tracker, "PACKAGE", "broken_tracker")
    with pytest.raises(UserError, match=r"does not import \(RuntimeError: half of it\): mend it"):
        require_trackers(["stand-in"])
    monkeypatch.setattr(tracker, "PACKAGE", "json")
    with pytest.raises(UserError, match="it was asked"):
        require_trackers(["stand-in"])


# By the packages themselves.


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"seed": 7}, "log": {"trackers": ["x" * 600]}}))
    return folder


def train_and_resume(folder, name):
    """Four steps, then again from the third on; the first with a grid. Returns what was said."""
    said = []
    for start, stop in ((0, 4), (2, 5)):
        with MetricsLog(folder, [name], said.append) as log:
            log.resume(start - 1)
            for step in range(start, stop):
                grid = save_grid(torch.rand(4, 3, 8, 8), grid_of(folder, step), 2) if step == 0 else None
                log.write(step, {"reward/a": step + start / 10, "bad": math.nan}, grid)
    return said


def records_of(path):
    """The protobuf records of a .wandb file: blocks of 32 KiB in LevelDB's log format, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_wandb_offline_has_metrics_grids_and_settings_in_one_run(run_folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    require_trackers(["wandb"])
    assert train_and_resume(run_folder, "wandb") == []
    number = (run_folder / "wandb.id").read_text().strip()
    files = sorted(run_folder.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{number}.wandb"] * len(files) and files
    told, runs = [], []
    for record in (record for path in files for record in records_of(path)):
        if record.HasField("run"):
            runs.append(record.run)
        if record.HasField("history"):
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            told.append((record.history.step.num, values))
    assert [step for step, _ in told] == [0, 1, 2, 3, 2, 3, 4]  # a server keeps the first of each
    assert [values["reward/a"] for _, values in told] == pytest.approx([0, 1, 2, 3, 2.2, 3.2, 4.2])
    assert {"time", "bad"} <= set(told[0][1]) and told[0][1]["samples/_type"] == "image-file"
    assert "samples/_type" not in told[1][1]
    assert {run.run_id for run in runs} == {number} and {run.project for run in runs} == {"dipp-ray"}
    assert {item.key: json.loads(item.value_json) for item in runs[0].config.update}["run"] == {"seed": 7}
    assert list(run_folder.glob("wandb/offline-run-*/files/media/images/samples*.png"))


def test_wandb_asks_for_a_login_before_training(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="run wandb login, or set WANDB_MODE=offline"):
        require_trackers(["wandb"])


def test_mlflow_has_each_step_once_in_one_run(run_folder, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/server")
    require_trackers(["mlflow"])
    assert train_and_resume(run_folder, "mlflow") == []
    client, number = MlflowClient(), (run_folder / "mlflow.id").read_text().strip()
    history = client.get_metric_history(number, "reward/a")
    assert [(one.step, one.value) for one in history] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.2)]
    assert abs(history[0].timestamp / 1000 - read_metrics(run_folder)[0]["time"]) < 1
    run = client.get_run(number)
    assert (run.info.run_name, run.info.status, run.data.params["run.seed"]) == ("tiny", "FINISHED", "7")
    assert len(run.data.params["log.trackers"]) == 500 and math.isnan(run.data.metrics["bad"])
    assert [file.path for file in client.list_artifacts(number, "samples")] == ["samples/step_000000.png"]
    with MetricsLog(run_folder, ["mlflow"]) as log:  # begun anew, it is another run
        log.resume(-1)
        steps(log, 0)
    assert (run_folder / "mlflow.id").read_text().strip() != number


def test_mlflow_that_is_told_no_server_is_one_sentence(monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
        require_trackers(["mlflow"])


def test_a_server_that_is_gone_is_told_in_one_line(run_folder, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/server")
    said = []
    with MetricsLog(run_folder, ["mlflow"], said.append) as log:
        steps(log, 1)
    shutil.rmtree(tmp_path / "server")
    with MetricsLog(run_folder, ["mlflow"], said.append) as log:
        steps(log, 2, 3)
    assert len(said) == 1 and re.match(r"mlflow could not open \(.*\): the run goes on without it", said[0])
