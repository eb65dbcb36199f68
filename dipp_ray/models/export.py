"""The trained generator as a diffusers pipeline folder that gives the trainer's x0 in one step."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from dipp_ray.diffusion.one_step import OneStep, same_reading
from dipp_ray.errors import UserError
from dipp_ray.models.adapter_files import read_back, save_adapter
from dipp_ray.models.adapters import trained_weights
from dipp_ray.models.components import is_plain, load_components, load_model, models_of
from dipp_ray.models.families import Family
from dipp_ray.models.pipeline import ONE_STEP_FILE, ONE_STEP_KEY, OUTPUT_SCALE, load_denoiser, scale_output
from dipp_ray.models.plain_pipeline import PlainPipeline, load_pipeline
from dipp_ray.models.schedulers import output_scale
from dipp_ray.models.weights import find_weights
from dipp_ray.storage.aside import whole_folder
from dipp_ray.storage.weight_names import is_weights


def export_pipeline(frame: Family, weights: dict[str, Tensor], one_step: OneStep, out: str | Path) -> Path:
    """Write the teacher's pipeline with the generator's weights (by parameter name, fp32) to the folder `out`.

    Raises UserError where the weights do not fit the teacher's network.
    """
    network = load_denoiser(frame.folder, "fp32", frame=frame).network
    take_weights(network, weights, frame.folder)
    return write_pipeline(frame, network, one_step, out)


def take_weights(network: Any, weights: dict[str, Tensor], whose: str | Path) -> None:
    """Set what is trained of a network, by parameter name. Raises UserError unless it is all of that, and no more."""
    missing, unexpected = network.load_state_dict(weights, strict=False)
    asked = {name for name, _ in trained_weights(network)}
    missing = [name for name in missing if name in asked]
    if missing or unexpected:
        raise UserError(f"the weights do not fit {whose}: missing {missing[:3]}, unexpected {list(unexpected)[:3]}")


def write_pipeline(frame: Family, network: Any, one_step: OneStep, out: str | Path) -> Path:
    """Write the teacher's pipeline with the generator's network of diffusers, fp32, to the folder `out`.

    It is built aside and renamed into place.
    """
    out = Path(out)
    with whole_folder(out) as aside:
        index = copy_components(frame, aside, without=(frame.network_part, "scheduler"))
        scale = output_scale(frame.diffusion, one_step)
        scale_output(network, frame, scale)
        network.save_pretrained(aside / frame.network_part)
        scale_output(network, frame, 1 / scale)
        index["scheduler"] = ["diffusers", write_one_step(frame, one_step, aside)]
        index[frame.network_part] = ["diffusers", frame.network_class]
        (aside / "model_index.json").write_text(json.dumps(index, indent=2))
    return out


def write_adapter(frame: Family, network: Any, one_step: OneStep, out: str | Path) -> Path:
    """Write the adapter of the generator's network, with the scheduler of its one step, to the folder `out`."""
    out = Path(out)
    with whole_folder(out) as aside:
        save_adapter(network, frame, aside)
        write_one_step(frame, one_step, aside)
    return out


def copy_components(frame: Family, out: Path, without: Collection[str]) -> dict:
    """Write the folder's named components to a new folder; returns the model_index.json that belongs to them.

    Nothing else of the folder goes along, nor hidden files, dangling links and weights of other kinds. Weights that
    plain diffusers would not load as the trainer does (a variant, .bin, half precision) are written anew in fp32.
    """
    out.mkdir(parents=True, exist_ok=True)
    models = models_of(frame)
    for name, entry in frame.index.items():
        if not isinstance(entry, list) or name in frame.absent or name in without:
            continue
        source = frame.folder / name
        files = find_weights(source, models[name][0]) if name in models else None
        plain = files is not None and is_plain(files)
        kept = [path for path in source.iterdir() if path.is_file() and not path.name.startswith(".")]
        if files is not None:
            kept = [path for path in kept if (plain and path in files.all) or not is_weights(path.name)]
        (out / name).mkdir()
        for path in kept:
            shutil.copyfile(path, out / name / path.name)
        if files is not None and not plain:
            load_model(source, *models[name], torch.float32).save_pretrained(out / name)
    return frame.index | {name: [None, None] for name in frame.absent}


def write_one_step(frame: Family, one_step: OneStep, out: Path) -> str:
    """Write the scheduler of the single step, and what it was trained with, in two places; returns its class's name."""
    scheduler, record = frame.one_step_scheduler(one_step), one_step_record(frame, one_step)
    scheduler.register_to_config(**{ONE_STEP_KEY: record})
    scheduler.save_pretrained(out / "scheduler")
    (out / ONE_STEP_FILE).write_text(json.dumps(record))
    return type(scheduler).__name__


def one_step_record(frame: Family, one_step: OneStep) -> dict:
    """What an export says of itself: where and how the network is read, and what was set beside its folder's own.

    `prediction` where it is not the teacher's; OUTPUT_SCALE where the network's last layer is multiplied by it, which
    `load_denoiser` takes back: so the folder is a start of exactly the generator that was exported.
    """
    record: dict = {"t_star": one_step.t_star, "input": one_step.convention}
    if not same_reading(frame.diffusion, one_step.diffusion):
        record["prediction"] = one_step.diffusion.kind
    if (scale := output_scale(frame.diffusion, one_step)) != 1:
        record[OUTPUT_SCALE] = scale
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


def adapter_error(folder: Path, network: Any, prompts: list[str], z: Tensor, x0: np.ndarray, frame: Family) -> float:
    """The same of an exported adapter, loaded in plain diffusers onto the network that it was trained on."""
    pipeline = load_components(frame, torch.float32, given={frame.network_part: network})
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    pipeline.scheduler = getattr(diffusers, scheduler).from_pretrained(folder, subfolder="scheduler")
    read_back(pipeline, frame, folder)
    pipeline.set_progress_bar_config(disable=True)
    latents = PlainPipeline(frame, pipeline).latents(prompts, z)
    return float(np.abs(latents.numpy() - x0).max() / np.abs(x0).max())
