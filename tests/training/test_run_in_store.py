"""A run whose folder is a bucket: begun on one machine, gone on with on another, read by every verb; nothing shared."""

import json
import os
import subprocess
import sys
import tempfile
import time

import pytest
import torch
import yaml

from dipp_ray.checkpoints import CheckpointStore
from dipp_ray.errors import RunFolderLost
from dipp_ray.storage.remote import file_system
from dipp_ray.training.home import Home
from faulty_s3 import leave_upload, uploads
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

COMMAND = "import sys; from dipp_ray.cli import main; sys.exit(main())"


class Machine:
    """Runs the command with a disk of its own."""

    def __init__(self, name, folder):
        self.cache, self.here = folder / name, tempfile.mkdtemp(prefix=f"dr{name}-", dir="/tmp")  # short: for sockets
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self.env = kept | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": self.here, "RAY_worker_niceness": "0"}
        self.env["DIPP_RAY_CACHE"] = str(self.cache)

    def start(self, *arguments):
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, arguments)],
            cwd=self.here, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *arguments):
        command = self.start(*arguments)
        out, error = command.communicate(timeout=900)
        assert command.returncode == 0, out + error
        return out


def objects(url):
    fs, root = file_system(url)
    return {path.removeprefix(f"{root}/") for path in fs.find(root)}


def records(url):
    fs, root = file_system(url)
    return [json.loads(line) for line in fs.cat_file(f"{root}/metrics.jsonl").splitlines()]


def test_the_newer_trainer_has_the_folder(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("DIPP_RAY_CACHE", str(tmp_path))
    config = tiny_config(tmp_path, tmp_path, tmp_path / "p", f"run.folder={bucket}/runs")
    first, second = Home(config), Home(config)
    first.enter()
    first.require(3)
    second.enter()
    with pytest.raises(
        RunFolderLost, match=r"another process trains there now \(process \d+ on .*; seen after step 6\)"
    ):
        first.require(6)
    second.require(6)
    fs, root = file_system(config.place)
    fs.rm(root, recursive=True)
    with pytest.raises(
        RunFolderLost, match=r"s3://.*/runs/tiny was removed while its run trained \(seen after step 9\)"
    ):
        second.require(9)


def test_a_trainer_aborts_the_uploads_that_a_killed_one_left(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("DIPP_RAY_CACHE", str(tmp_path))
    leave_upload(bucket, "runs/tiny/pipeline/unet/diffusion_pytorch_model.safetensors")
    Home(tiny_config(tmp_path, tmp_path, tmp_path / "p", f"run.folder={bucket}/runs")).enter()
    assert uploads(bucket) == []


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_elsewhere_and_is_read_there(bucket, tmp_path):
    pipeline, prompts = pixart_pipeline(tmp_path / "pipeline"), prompt_file(tmp_path / "prompts.parquet")
    fs, _ = file_system(bucket)
    fs.put(str(pipeline), f"{bucket}/teacher", recursive=True)
    fs.put_file(str(prompts), f"{bucket}/prompts.parquet")
    steps = ["run.steps=9", "checkpoint.every=3", "log.samples_every=3", "objective.reward_scale=0", "reward.terms=[]"]
    steps += ["evaluation.samples=8", "evaluation.teacher_steps=2"]
    configs = {}
    for name, folder in (("there", f"{bucket}/runs"), ("here", str(tmp_path))):
        sources = (tmp_path, f"{bucket}/teacher", f"{bucket}/prompts.parquet")
        config = tiny_config(*sources, f"run.name={name}", f"run.folder={folder}", *steps)
        configs[name] = tmp_path / f"{name}.yaml"
        configs[name].write_text(yaml.safe_dump(config.model_dump(mode="json")))
    url = f"{bucket}/runs/there"
    one, two = Machine("a", tmp_path), Machine("b", tmp_path)
    one.run("check", configs["there"])

    killed = one.start("train", configs["there"])
    while "checkpoints/step_000003/COMMITTED.json" not in objects(url):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    killed.kill()
    killed.communicate()

    out = two.run("train", configs["there"])
    assert "resumed from the checkpoint of step" in out and f"report: {url}/report.html" in out
    found = objects(url)
    for name in ("config.yaml", "metrics.jsonl", "evaluation.json", "evaluation_grid.png", "report.html"):
        assert name in found
    assert {"samples/step_000003.png", "samples/step_000009.png", "pipeline/model_index.json"} <= found
    assert [record["step"] for record in records(url)] == list(range(10))

    two.run("train", configs["here"])
    groups = [
        {group: store.read_group(store.latest(thorough=True), group)[0] for group in ("generator", "score")}
        for store in (CheckpointStore(f"{url}/checkpoints"), CheckpointStore(tmp_path / "here/checkpoints"))
    ]
    for group, tensors in groups[0].items():
        assert all(torch.equal(value, groups[1][group][name]) for name, value in tensors.items())

    three = Machine("c", tmp_path)
    assert three.run("report", url).strip() == f"{url}/report.html"
    three.run("sample", url, "--prompt", "a seven", "--out", tmp_path / "image.png")
    assert (tmp_path / "image.png").is_file()
    three.run("sample", f"{url}/pipeline", "--prompt", "a seven", "--out", tmp_path / "same.png")
    assert (tmp_path / "image.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    three.run("export", url, tmp_path / "export")
    three.run("export", f"{url}/checkpoints/step_000009", tmp_path / "export")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "export" / weights).read_bytes() == fs.cat_file(f"{url}/pipeline/{weights}")
    assert f"{url}/evaluation.json" in three.run("evaluate", url)
