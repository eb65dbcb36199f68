"""What a person reads of the commands themselves: their own sentences, and nothing of the libraries'."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from settings import tiny_config
from tiny import prompt_file, sd_pipeline

TESTS = Path(__file__).parents[1]
COMMAND = "import sys; from dipp_ray.cli import main; sys.exit(main())"
NOISE = (
    "torchvision",
    "retries",
    "Traceback",
    "raylet",
    "Unhandled",
    "Warning",
    "WARNING",
    " at 0x",
    "\x1b[",
    "Ray logs",
)
TERMS = (
    "reward.terms=[{name: ink, model: 'settings:InkReward'}, {name: gold, model: 'settings:InkReward', held_out: true}]"
)
BROKEN = """
from dipp_ray.models.families.stable_diffusion import StableDiffusion

class Broken(StableDiffusion):
    calls = 0

    def output(self, network, x_t, t, embeds):
        Broken.calls += 1
        if Broken.calls > 40:
            raise ZeroDivisionError(f"the network of {self!r}".replace("=", "") + str(object()))
        return super().output(network, x_t, t, embeds)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Stable Diffusion, for its CLIP is what libraries speak of most."""
    path = tmp_path_factory.mktemp("quiet")
    sd_pipeline(path / "teacher"), prompt_file(path / "prompts.parquet")
    (path / "broken.py").write_text(BROKEN)
    config = tiny_config(
        path, path / "teacher", path / "prompts.parquet", TERMS, "run.steps=6", "checkpoint.every=3",
        "log.samples_every=3", "log.trackers=[tensorboard]", "evaluation.samples=20", "evaluation.teacher_steps=2",
    )  # fmt: skip
    (path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def said(folder, *arguments):
    """(exit status, stdout, stderr) of the command."""
    sockets = tempfile.mkdtemp(prefix="drq-", dir="/tmp")  # short: Ray's sockets lie in it
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": sockets, "PYTHONPATH": str(TESTS)}
    ran = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    heard = [noise for noise in NOISE if noise in ran.stdout + ran.stderr]
    assert heard == [], ran.stdout + ran.stderr
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.slow
def test_check_and_train_say_their_own_sentences_alone(folder):
    status, out, error = said(folder, "check", "run.yaml")
    assert (status, error) == (0, "") and "ready. 5 prompts" in out
    status, out, error = said(folder, "train", "run.yaml")
    assert (status, error) == (0, "")
    last = [line for line in out.splitlines() if line.startswith("tiny 6/6")][-1]
    assert "held-out gold" in last and "at step 6" in last
    assert "waiting for generator rank 0: step" not in out
    assert out.rstrip().endswith("report.html")
    assert Path(folder / "tiny" / "report.html").stat().st_size < 2e6


@pytest.mark.slow
def test_an_error_that_nobody_foresaw_is_one_sentence(folder):
    status, _, error = said(folder, "train", "run.yaml", "run.name=broken", "model.family=broken:Broken")
    assert status == 1
    assert error.count("\n") == 1 and error.startswith("dipp-ray: ZeroDivisionError: the network of")
    assert "its traceback is in" in error and "raised by" in error
    account = (folder / "broken" / "error.txt").read_text()
    assert "ZeroDivisionError" in account and "in output" in account and "\x1b" not in account
