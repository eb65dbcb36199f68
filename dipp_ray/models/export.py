"""The trained generator as a diffusers pipeline folder that gives the trainer's x0 in one step."""

import json
import shutil
from pathlib import Path

import numpy as np
from torch import Tensor

from dipp_ray.diffusion.one_step import OneStep
from dipp_ray.errors import UserError
from dipp_ray.models.families import Family
from dipp_ray.models.pipeline import ONE_STEP_FILE, load_denoiser
from dipp_ray.models.plain_pipeline import load_pipeline


def export_pipeline(frame: Family, weights: dict[str, Tensor], one_step: OneStep, out: str | Path) -> Path:
    """Write the teacher's pipeline with the generator's weights (by parameter name, fp32) to the folder `out`.

    It is built aside and renamed into place. Raises UserError where the weights do not fit the teacher's network.
    """
    out = Path(out)
    aside = out.with_name(out.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(frame.folder, aside, ignore=shutil.ignore_patterns(frame.network_part, "scheduler", ONE_STEP_FILE))
    network = load_denoiser(frame.folder, "fp32", frame=frame).network
    missing, unexpected = network.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name in dict(network.named_parameters())]
    if missing or unexpected:
        raise UserError(
            f"the weights do not fit {frame.folder}: missing {missing[:3]}, unexpected {list(unexpected)[:3]}"
        )
    network.save_pretrained(aside / frame.network_part)
    scheduler = frame.one_step_scheduler(one_step)
    scheduler.save_pretrained(aside / "scheduler")
    index = json.loads((aside / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    index[frame.network_part] = ["diffusers", frame.network_class]
    (aside / "model_index.json").write_text(json.dumps(index, indent=2))
    (aside / ONE_STEP_FILE).write_text(json.dumps(one_step_record(frame, one_step)))
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
    return out


def one_step_record(frame: Family, one_step: OneStep) -> dict:
    """What one_step.json holds: where and how the network is read, and what was set beside its folder's own."""
    record: dict = {"t_star": one_step.t_star, "input": one_step.convention}
    if frame.resolution is not None:
        record["resolution"] = list(frame.resolution)
    if frame.embedded_guidance is not None:
        record["embedded_guidance"] = frame.embedded_guidance
    return record


def export_error(
    folder: str | Path, prompts: list[str], z: Tensor, x0: np.ndarray, frame: Family | None = None
) -> float:
    """Largest difference between the exported pipeline's latents and the trainer's x0 [B, C, h, w], relative to x0.

    NaN where either holds one: it is within no bound.
    """
    latents = load_pipeline(folder, frame=frame).latents(prompts, z)
    return float(np.abs(latents.numpy() - x0).max() / np.abs(x0).max())
