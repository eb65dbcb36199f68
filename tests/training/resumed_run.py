"""A checkpoint of step 3 from before the step was a list, and what its run measured in steps 4 to 6: it must resume
ever after. Format 1 held a hash of the trajectory's settings; the files here say the settings themselves."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file

from dipp_ray.models.reading import settled
from dipp_ray.training.trajectory import trajectory_hash
from settings import tiny_config

FIXTURE = Path(__file__).parent.parent / "fixtures" / "resumed_run"
TERMS = [
    {"name": "ink", "model": "settings:InkReward", "weight": 0.5},
    {"name": "gold", "model": "settings:InkReward", "held_out": True},
]


def measured():
    """Figures of steps 4, 5 and 6."""
    return json.loads((FIXTURE / "metrics.json").read_text())


def average_x0():
    """x0 of the moving average after step 6, on the evaluation's first eight noises and prompts."""
    return load_file(FIXTURE / "x0.safetensors")["x0"].numpy()


def config_of(folder, name, *overrides):
    config = tiny_config(
        folder, FIXTURE / "pipeline", FIXTURE / "prompts.parquet",
        f"run.name={name}", "run.steps=6", "checkpoint.every=3", "log.samples_every=6",
        "objective.order=strict", "objective.score_updates=2", "init.score_warmup_steps=2", "reward.standardise=true",
        f"reward.terms={TERMS}", *overrides,
    )  # fmt: skip
    return settled(config)


def lay_out(config, format_):
    """The run's folder as it was when that run was killed, with the checkpoint's record in either format."""
    step = config.path / "checkpoints" / "step_000003"
    shutil.copytree(FIXTURE / "step_000003", step)
    text = (step / "COMMITTED.json").read_text().replace("WORLD", str(FIXTURE))
    body = json.loads(text)
    if format_ == 1:
        body["format"] = 1
        del body["record"]["trajectory"]
        body["record"]["trajectory_hash"] = trajectory_hash(config)
    (step / "COMMITTED.json").write_text(json.dumps(body))
