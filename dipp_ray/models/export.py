"""The trained generator as a diffusers pipeline folder that gives the trainer's x0 in one step.

The schedule is truncated at t*, so that `num_inference_steps=1` with trailing spacing lands exactly there. Other
choices of scheduler are silently wrong: DDIM with set_alpha_to_one=False by 2.5 %, DDPM with clip_sample by 46 %.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, EulerDiscreteScheduler
from torch import Tensor

from dipp_ray.diffusion.one_step import OneStep
from dipp_ray.diffusion.schedule import FlowSchedule
from dipp_ray.errors import UserError
from dipp_ray.models.pipeline import load_denoiser, read_frame
from dipp_ray.storage.aside import whole_folder

# Read beside the weights by whoever trains on from this folder.
ONE_STEP_FILE = "one_step.json"


def export_pipeline(teacher: str | Path, weights: dict[str, Tensor], one_step: OneStep, out: str | Path) -> Path:
    """Write the teacher's pipeline with the generator's weights (by parameter name, fp32) to the folder `out`.

    It is built aside and renamed into place. Raises UserError where the weights do not fit the teacher's network.
    """
    frame, out = read_frame(teacher), Path(out)
    network = load_denoiser(teacher, "fp32").network
    missing, unexpected = network.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name in dict(network.named_parameters())]
    if missing or unexpected:
        raise UserError(f"the weights do not fit {teacher}: missing {missing[:3]}, unexpected {list(unexpected)[:3]}")
    scheduler = one_step_scheduler(frame.folder, one_step)
    with whole_folder(out) as aside:
        others = shutil.ignore_patterns(frame.network_part, "scheduler", ONE_STEP_FILE)
        shutil.copytree(frame.folder, aside, ignore=others, dirs_exist_ok=True)
        network.save_pretrained(aside / frame.network_part)
        scheduler.save_pretrained(aside / "scheduler")
        index = json.loads((aside / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        (aside / "model_index.json").write_text(json.dumps(index, indent=2))
        (aside / ONE_STEP_FILE).write_text(json.dumps({"t_star": one_step.t_star, "input": one_step.convention}))
    return out


def one_step_scheduler(teacher: Path, one_step: OneStep):
    """The scheduler with which one step from noise is the generator, exactly."""
    if isinstance(one_step.diffusion.schedule, FlowSchedule):
        return DiffusionPipeline.from_pretrained(teacher).scheduler
    config = json.loads((teacher / "scheduler" / "scheduler_config.json").read_text())
    betas = DDPMScheduler.from_config(config).betas[: one_step.t_star + 1].tolist()
    shared = {
        "trained_betas": betas,
        "num_train_timesteps": one_step.t_star + 1,
        "timestep_spacing": "trailing",
        "prediction_type": one_step.diffusion.kind,
    }
    if one_step.convention == "unit":
        return DDPMScheduler(clip_sample=False, variance_type="fixed_small", **shared)
    return EulerDiscreteScheduler(**shared)


def one_step_of_folder(folder: str | Path) -> dict | None:
    """{'t_star', 'input'} that an exported folder was trained with, or None for another pipeline."""
    path = Path(folder) / ONE_STEP_FILE
    return json.loads(path.read_text()) if path.exists() else None


def call_arguments(pipeline_class: str) -> dict:
    """What the call of a pipeline of this class needs beside the prompt for one step without guidance."""
    arguments = {"num_inference_steps": 1, "guidance_scale": 0.0}
    if pipeline_class.startswith("PixArt"):
        arguments |= {"use_resolution_binning": False, "clean_caption": False}
    return arguments


def load_pipeline(folder: str | Path, device: torch.device | str = "cpu") -> DiffusionPipeline:
    """A pipeline folder in plain diffusers, without its progress bar. Raises UserError where it does not load."""
    read_frame(folder)
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} does not load as a diffusers pipeline: {' '.join(str(error).split())}") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def export_error(folder: str | Path, prompts: list[str], z: Tensor, x0: np.ndarray) -> float:
    """Largest difference between the exported pipeline's latents and the trainer's x0 [B, C, h, w], relative to x0."""
    pipeline = load_pipeline(folder)
    latents = pipeline(prompts, latents=z, output_type="latent", **call_arguments(type(pipeline).__name__)).images
    return float(np.abs(latents.numpy() - x0).max() / np.abs(x0).max())
