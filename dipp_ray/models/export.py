"""The trained generator as a diffusers pipeline folder that gives the trainer's x0 in one step."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dipp_ray.diffusion.one_step import OneStep
from dipp_ray.errors import UserError
from dipp_ray.models.components import is_plain, load_model, models_of
from dipp_ray.models.families import Family
from dipp_ray.models.pipeline import ONE_STEP_FILE, load_denoiser
from dipp_ray.models.plain_pipeline import load_pipeline
from dipp_ray.models.weights import find_weights
from dipp_ray.storage.aside import whole_folder
from dipp_ray.storage.weight_names import is_weights


def export_pipeline(frame: Family, weights: dict[str, Tensor], one_step: OneStep, out: str | Path) -> Path:
    """Write the teacher's pipeline with the generator's weights (by parameter name, fp32) to the folder `out`.

    It is built aside and renamed into place. Raises UserError where the weights do not fit the teacher's network.
    """
    out = Path(out)
    network = load_denoiser(frame.folder, "fp32", frame=frame).network
    missing, unexpected = network.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name in dict(network.named_parameters())]
    if missing or unexpected:
        raise UserError(
            f"the weights do not fit {frame.folder}: missing {missing[:3]}, unexpected {list(unexpected)[:3]}"
        )
    scheduler = frame.one_step_scheduler(one_step)
    with whole_folder(out) as aside:
        index = copy_components(frame, aside, without=(frame.network_part, "scheduler"))
        network.save_pretrained(aside / frame.network_part)
        scheduler.save_pretrained(aside / "scheduler")
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        index[frame.network_part] = ["diffusers", frame.network_class]
        (aside / "model_index.json").write_text(json.dumps(index, indent=2))
        (aside / ONE_STEP_FILE).write_text(json.dumps(one_step_record(frame, one_step)))
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
