"""Generators laid where published ones lie, and the settings of runs that leave to them how they are read."""

import shutil
from pathlib import Path

import torch

SIZES = {"sanasprint": (32, 32)}
UNASKED = (
    "objective.guidance_scale=1",
    "model.t_star=null",
    "data.batch_size=2",
    "data.micro_batches=1",
    "objective.reward_scale=0",
)
PARTS_ALONE = ("dipp_1step", "sim_1step", "PixArt-Alpha-DMD", "/unet")


def lay(place: Path, source: Path, part: str) -> Path:
    """The weights of the pipeline `source` as they are published at `place`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    weights = source / part / "diffusion_pytorch_model.safetensors"
    if place.suffix == ".safetensors":
        shutil.copyfile(weights, place)
    elif place.suffix == ".bin":
        from safetensors.torch import load_file

        torch.save(load_file(weights), place)
    elif place.name == part:
        shutil.copytree(source / part, place)
    elif any(name in str(place) for name in PARTS_ALONE):
        shutil.copytree(source / part, place / part)
    else:
        shutil.copytree(source, place)
    return place
