"""Images from a pipeline folder as a person gets them: plain diffusers, nothing of the trainer's."""

import math
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.errors import UserError
from dipp_ray.models.export import call_arguments, load_pipeline, one_step_of_folder
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.pipeline import device_of_this_process
from dipp_ray.storage.aside import whole_file

SMALLEST_SIDE = 256  # of a written image, pixels; smaller ones are enlarged by a whole factor


def sample_to_file(folder: str | Path, prompt: str, seed: int, out: str | Path) -> Path:
    """Write the one-step image of `prompt` as a PNG, from the noise of torch.Generator().manual_seed(seed).

    Each pixel of an image below 256 pixels becomes a square of as many pixels as brings its shorter side there.
    Raises UserError where the folder holds no exported one-step generator, or `out` cannot be written.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {out.parent} to write {out.name} into: make it first")
    if not prompt.strip():
        raise UserError("the prompt is empty: give --prompt some words")
    pipeline = load_pipeline(folder, device_of_this_process())
    if one_step_of_folder(folder) is None:
        raise UserError(
            f"{folder} is no one-step generator that was exported here (it has no one_step.json): give the pipeline/ "
            "of a run"
        )
    generator = torch.Generator().manual_seed(seed)
    image = pipeline(prompt, generator=generator, **call_arguments(type(pipeline).__name__)).images[0]
    factor = math.ceil(SMALLEST_SIDE / min(image.size))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    with whole_file(out) as aside:
        image.save(aside, format="PNG")
    return out


@torch.no_grad()
def sample_images(
    pipeline: DiffusionPipeline, prompts: list[str], seed: int, steps: int, guidance_scale: float, batch: int
) -> Tensor:
    """Images [B, 3, H, W] in [0, 1], fp32 on the CPU, one a prompt, `batch` at a time.

    Image i begins at the noise of the key (seed, EVALUATION, 0, i): every pipeline is given the same noises.
    """
    network = getattr(pipeline, "transformer", None) or pipeline.unet
    size = network.config.sample_size
    name = type(pipeline).__name__
    arguments = call_arguments(name) | {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    if name.startswith("PixArt"):
        arguments["max_sequence_length"] = longest(pipeline.tokenizer, prompts)
    decoder = LatentDecoder(pipeline.vae)
    images = []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        draws = Draws(seed, EVALUATION, 0, range(start, start + len(some)))
        noise = draws.normal("z", (network.config.in_channels, size, size)).to(pipeline.device)
        latents = pipeline(some, latents=noise, output_type="latent", **arguments).images
        images.append(decoder.decode(latents.float()).cpu())
    return torch.cat(images)


def longest(tokenizer, prompts: list[str]) -> int:
    """Tokens of the longest prompt, at most PixArt's 120: padding is masked, and costs most of a small step's time."""
    return min(120, max(len(tokens) for tokens in tokenizer(list(set(prompts))).input_ids))
