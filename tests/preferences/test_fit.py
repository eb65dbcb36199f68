"""Whole fits with Ray Train: what comes out, what is refused, what a lost worker, driver or node costs (nothing)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from preference_pairs import fit_config, make_rows, write_pairs, write_parquet
from safetensors.torch import load_file
from transformers import CLIPModel

from dipp_ray import cli, verbs
from dipp_ray.errors import NonFiniteError, RoleFailure, UserError
from dipp_ray.preferences.calibration import pair_accuracy
from dipp_ray.preferences.config import ColumnSettings
from dipp_ray.preferences.dataset import load_pairs
from dipp_ray.preferences.fit import fit_reward, prepared
from dipp_ray.preferences.reading import read_images, read_labels
from dipp_ray.preferences.session import interruptible
from dipp_ray.preferences.state import latest_state
from dipp_ray.rewards.loading import load_reward
from dipp_ray.rewards.terms import RewardTerm
from tiny_models import save_clip

WEIGHTS = "model.safetensors"
AUGMENTED = ["fit.noise=0.05", "fit.shift=1", "checkpoint.every=10"]
LIVELY = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2"


@pytest.fixture(autouse=True)
def lively(monkeypatch):
    """Ray Train looks at its workers ten times as often, for tests checkpoint ten times as often."""
    monkeypatch.setenv(*LIVELY)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(base, train pairs, held-out pairs)"""
    folder = tmp_path_factory.mktemp("pairs")
    base = save_clip(folder / "base")
    return base, write_pairs(folder / "train.parquet", 400, 0), write_pairs(folder / "test.parquet", 200, 1)


def quiet(text):
    pass


def same_bits(left, right):
    left, right = load_file(left / WEIGHTS), load_file(right / WEIGHTS)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def difference(left, right):
    """Largest difference of a weight, relative to the largest weight of its tensor.

    Biases of keys are left out: softmax does not see them, so their gradient is rounding alone, which AdamW scales up.
    """
    left, right = load_file(left / WEIGHTS), load_file(right / WEIGHTS)
    keys = [key for key in left if not key.endswith("k_proj.bias")]
    assert len(keys) == len(left) - 4
    return max(((left[key] - right[key]).abs().max() / left[key].abs().max()).item() for key in keys)


@pytest.fixture(scope="module")
def whole(ray_session, tmp_path_factory, world):
    """(config, record, steps of the measurements that were told) of a fit that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*LIVELY)
        config, seen = fit_config(tmp_path_factory.mktemp("whole"), *world, *AUGMENTED), []
        record = fit_reward(config, lambda step, message: seen.append(step) if "accuracy" in message else None, quiet)
    return config, record, seen


def test_a_fit_learns_and_is_a_reward_that_the_service_loads(whole, world):
    config, record, seen = whole
    out = config.out_folder
    assert record["base"]["accuracy"] < 0.75
    assert record["held_out"]["accuracy"] > 0.97 and record["held_out"]["log_loss"] < 0.3 < record["base"]["log_loss"]
    assert record["held_out"]["calibration_error"] < 0.1 < record["base"]["calibration_error"]
    assert sum(row["pairs"] for row in record["held_out"]["reliability"]) == record["held_out_pairs"] == 200
    assert seen == [0, 60, 120]
    assert json.loads((out / "fit.json").read_text()) == record
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    card = (out / "README.md").read_text()
    assert all(f"| {part['accuracy']:.3f} (" in card for part in (record["base"], record["held_out"]))

    # What the service loads scores the pairs as the fit did; transformers loads it too.
    labels = read_labels(world[2], ColumnSettings())
    images = torch.from_numpy(next(read_images(labels, ColumnSettings(), 8, lambda row: row < 64))) / 255
    reward = load_reward(RewardTerm(name="mine", model="pickscore", folder=config.out))
    with torch.no_grad():
        margin = reward.reward(images[:, 0], labels.prompts[:64]) - reward.reward(images[:, 1], labels.prompts[:64])
    assert pair_accuracy(margin, torch.from_numpy(labels.label[:64])) > 0.95
    assert CLIPModel.from_pretrained(config.out).config.projection_dim == 16


def test_a_finished_fit_is_not_fitted_again_and_another_is_refused(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verbs, "connect", lambda: pytest.fail("Ray was started for a finished fit"))
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump(whole[0].model_dump(mode="json")))
    assert cli.main(["fit-reward", str(path), "workers.count=2", "checkpoint.every=7"]) == 0
    said = capsys.readouterr().out
    assert "holds this fit already" in said and "expected calibration error" in said and "95% to 100%" in said
    assert cli.main(["fit-reward", str(path), "fit.lr=0.002"]) == 2
    said = capsys.readouterr().err
    assert "a fit of another configuration (lr is 0.001 there, 0.002 here)" in said and "replace=true" in said
    assert cli.main(["fit-reward", str(path), "columns.image_a=image_b", "columns.image_b=image_a"]) == 2
    assert "(columns.image_a is image_a there, image_b here" in capsys.readouterr().err


class Killer:
    """Kills rank 0 once its fit has come two checkpoints further: Ray Train knows of the first by then."""

    def __init__(self, config, times):
        self.root, self.times, self.before, self.starts = config.work_folder / "ray", times, 0, []

    def __call__(self, step, message):
        if "started" in message:
            self.starts.append(step)
            self.pid = message["started"]
        found = latest_state(self.root)
        if self.times and found and found[1]["step"] >= self.before + 20:
            self.before, self.times = found[1]["step"], self.times - 1
            os.kill(self.pid, signal.SIGKILL)


def test_a_lost_worker_and_the_same_command_again_end_with_the_same_bits(whole, tmp_path, world):
    config = fit_config(tmp_path, *world, *AUGMENTED, "workers.max_failures=0")
    with pytest.raises(RoleFailure, match=r"workers\.max_failures=0 .* the same command goes on"):
        fit_reward(config, Killer(config, times=1), quiet)
    assert not config.out_folder.exists()
    with prepared(config, quiet), pytest.raises(UserError, match="another program is fitting"):
        fit_reward(config, None, quiet)
    with pytest.raises(UserError, match=r"an unfinished fit of another configuration \(seed is 0 there, 1 here\)"):
        fit_reward(fit_config(tmp_path, *world, *AUGMENTED, "fit.seed=1"), None, quiet)
    again = Killer(config, times=0)
    record = fit_reward(config, again, quiet)
    assert 20 <= record["resumed_at"] < 120 and again.starts == [record["resumed_at"]]
    assert record["history"] == whole[1]["history"] and record["held_out"] == whole[1]["held_out"]
    assert same_bits(config.out_folder, whole[0].out_folder)


def test_room_that_the_cluster_never_has_is_said(ray_session, tmp_path, world):
    config = fit_config(tmp_path, *world, "workers={count: [2, 4], gpus: 1, accelerator: H100, wait_s: 1.5}")
    with pytest.raises(
        UserError, match=r"waiting for room for 2 workers of 1 CPU, 1 GPU on H100.*has 8 CPUs and 0 GPUs"
    ):
        fit_reward(config, None, quiet)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["bas=x"], "unknown key 'bas'"),
        (["fit.stps=3"], "did you mean fit.steps"),
        (["fit.batch_size=0"], "fit.batch_size: "),
        (["workers.count=0"], "give a number from 1 on"),
        (["workers.count=[3, 2]"], "[fewest, most]"),
        (["workers.count=[1, 64]"], "a worker needs one at least"),
        (["workers.cpus=0"], "a worker needs one of them"),
        (["workers={count: 2, gpus: 0.5}"], "NCCL"),
        (["base=/nowhere"], "/nowhere"),
        (["base=s3://bucket/clip"], "is no local folder"),
        (["out=s3://bucket/out"], "is no local folder"),
        (["pairs=/nowhere.parquet"], "/nowhere.parquet does not exist"),
        (["held_out=/nowhere.parquet"], "/nowhere.parquet does not exist"),
        (["held_out=null", "held_out_share=1e-9"], "puts none of the 4 prompts"),
        (["columns.label=score"], "no column score"),
        (["out=."], "holds something other than a fitted reward"),
        (["out=/proc/nowhere/out"], "cannot be written"),
    ],
)
def test_bad_input_is_one_sentence_before_ray(tmp_path, world, capsys, monkeypatch, overrides, words):
    monkeypatch.setattr(verbs, "connect", lambda: pytest.fail("Ray was started for bad input"))
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump(fit_config(tmp_path, *world).model_dump(mode="json")))
    assert cli.main(["fit-reward", str(path), *overrides]) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("dipp-ray: ") and said.count("\n") == 1


def test_pairs_that_are_fitted_to_are_not_measured_on(tmp_path, world):
    base, pairs, _ = world
    with pytest.raises(UserError, match=r"is in pairs and in held_out: .*: name other files"):
        fit_reward(fit_config(tmp_path, base, pairs, str(Path(pairs).parent / "*.parquet")), None, quiet)


def test_a_bad_image_is_refused_before_ray_and_leaves_the_old_fit(tmp_path, world):
    base, pairs, held_out = world
    wrong = write_parquet(tmp_path / "wrong.parquet", [*make_rows(3, 0), make_rows(1, 0)[0] | {"image_b": b"no"}])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "fit.json").write_text('{"configuration": "old"}')
    with pytest.raises(UserError, match=r"wrong\.parquet, row 3, second image: it is no"):
        fit_reward(fit_config(tmp_path, base, pairs, wrong, "replace=true"), None, quiet)
    assert json.loads((tmp_path / "out" / "fit.json").read_text()) == {"configuration": "old"}
    # Nothing was fitted yet: other pairs take the place of those that were decoded.
    config = fit_config(tmp_path, base, held_out, pairs, "replace=true")
    with prepared(config, quiet) as fit:
        assert [len(load_pairs(config.work_folder / name)) for name in ("train", "held_out")] == [200, 400]
        assert fit.counts == (200, 400) and fit.record is None


def test_held_out_prompts_are_split_off(tmp_path, world):
    config = fit_config(tmp_path, *world, "held_out=null", "held_out_share=0.4")
    with prepared(config, quiet) as fit:
        assert sum(fit.counts) == 400 and min(fit.counts) > 0


# -- slow: several workers, other processes --------------------------------------------------------------------------


@pytest.mark.slow
def test_ray_train_goes_on_after_a_lost_worker_with_the_same_bits(whole, tmp_path, world):
    config = fit_config(tmp_path, *world, *AUGMENTED, "workers.max_failures=1")
    killer = Killer(config, times=1)
    record = fit_reward(config, killer, quiet)
    assert killer.starts[0] == 0 and killer.starts[1] >= 10 and len(killer.starts) == 2 and record["resumed_at"] == 0
    assert same_bits(config.out_folder, whole[0].out_folder)


@pytest.mark.slow
def test_another_fit_takes_the_place_of_the_old_one_when_told_to(ray_session, tmp_path, world):
    settings = ["fit.steps=2", "fit.batch_size=8", "replace=true"]
    first = fit_reward(fit_config(tmp_path, *world, *settings), None, quiet)
    second = fit_reward(fit_config(tmp_path, *world, *settings, "fit.dtype=bf16"), None, quiet)
    assert json.loads((tmp_path / "out" / "fit.json").read_text()) == second
    assert second["settings"]["dtype"] == "bf16"
    assert 0 < abs(second["held_out"]["log_loss"] - first["held_out"]["log_loss"]) < 0.05


@pytest.mark.slow
def test_a_diverging_fit_is_one_sentence_and_leaves_what_was_there(ray_session, tmp_path, world):
    config = fit_config(tmp_path, *world, "fit.lr=1e18", "fit.warmup_steps=0")
    with pytest.raises(NonFiniteError, match=r"not finite at step \d+: lower fit\.lr=1e\+18"):
        fit_reward(config, None, quiet)
    assert not (tmp_path / "out").exists() and latest_state(config.work_folder / "ray") is None


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing_but_rounding(ray_session, tmp_path, world):
    settings = ["fit.noise=0.05", "fit.shift=1", "fit.steps=40", "fit.batch_size=31", "fit.report_every=20"]
    for workers in (1, 2, 3):
        (tmp_path / str(workers)).mkdir()
        config = fit_config(tmp_path / str(workers), *world, *settings, f"workers.count={workers}")
        record = fit_reward(config, None, quiet)
        if workers == 1:
            alone = record
        else:
            assert difference(tmp_path / "1" / "out", tmp_path / str(workers) / "out") < 1e-4
            assert record["history"][-1]["loss"] == pytest.approx(alone["history"][-1]["loss"], rel=1e-4)


def start_fit(path, env):
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "dipp_ray.cli", "fit-reward", str(path)],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_killed_driver_and_the_same_command_again_give_the_same_bits(tmp_path, world):
    env = {"RAY_TMPDIR": f"/tmp/drk-{os.getpid()}"}
    Path(env["RAY_TMPDIR"]).mkdir()
    settings = ["fit.steps=400", "fit.noise=0.05", "checkpoint.every=20"]
    for name in ("whole", "killed"):
        config = fit_config(tmp_path / name, *world, *settings)
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    driver = start_fit(tmp_path / "killed.yaml", env)
    began = time.monotonic()
    while latest_state(config.work_folder / "ray") is None:
        assert driver.poll() is None and time.monotonic() - began < 120, driver.stdout.read()
        time.sleep(0.1)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not (tmp_path / "killed" / "out").exists()
    for name in ("whole", "killed"):
        driver = start_fit(tmp_path / f"{name}.yaml", env)
        said, _ = driver.communicate(timeout=400)
        assert driver.returncode == 0, said
    assert int(re.search(r"from update (\d+)", said)[1]) >= 20
    assert same_bits(tmp_path / "whole" / "out", tmp_path / "killed" / "out")


NODE_LOST = """
import os, sys, time, threading, yaml
from ray.cluster_utils import Cluster
quick = dict(health_check_period_ms=500, health_check_timeout_ms=500, health_check_failure_threshold=4,
             health_check_initial_delay_ms=500)
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, object_store_memory=100_000_000,
                  include_dashboard=False, _system_config=quick))
other = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
cluster.wait_for_nodes()
import ray
ray.init(address=cluster.address, log_to_driver=False)
from dipp_ray.preferences.config import load_fit_config
from dipp_ray.preferences.fit import fit_reward
from dipp_ray.preferences.state import latest_state
config = load_fit_config(sys.argv[1])
lost, starts = [], []

def progress(step, message):
    if "started" in message:
        print("STARTED", message["workers"], step, flush=True)
    if not lost and latest_state(config.work_folder / "ray"):
        lost.append(step)
        print("LOST at", step, flush=True)
        cluster.remove_node(other, allow_graceful=False)

fit_reward(config, progress)
print("DONE")
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_lost_node_leaves_a_smaller_fit_with_the_same_result(ray_session, tmp_path, world):
    settings = ["fit.steps=400", "fit.report_every=40", "checkpoint.every=40", "fit.batch_size=31"]
    (tmp_path / "alone").mkdir()
    fit_reward(fit_config(tmp_path / "alone", *world, *settings), None, quiet)
    config = fit_config(tmp_path, *world, *settings, "workers.count=[1, 2]")
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (tmp_path / "cluster.py").write_text(NODE_LOST)
    env = os.environ | {"RAY_TMPDIR": f"/tmp/drn-{os.getpid()}"}
    Path(env["RAY_TMPDIR"]).mkdir()
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "cluster.py"), str(path)], env=env, capture_output=True, text=True, timeout=500
    )
    assert "DONE" in ran.stdout, ran.stdout + ran.stderr
    starts = [(int(workers), int(step)) for workers, step in re.findall(r"STARTED (\d) (\d+)", ran.stdout)]
    assert starts[0] == (2, 0) and starts[-1][0] == 1 and starts[-1][1] >= 40, ran.stdout
    assert difference(tmp_path / "alone" / "out", tmp_path / "out") < 1e-2


def test_ctrl_c_stays_ctrl_c():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise SystemExit(0)  # what Ray Train makes of it
    assert signal.getsignal(signal.SIGINT) is before
