"""Images from a pipeline folder as a person gets them: plain diffusers, nothing of the trainer's."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.errors import UserError
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.pipeline import device_of_this_process, one_step_of_folder, read_frame
from dipp_ray.models.plain_pipeline import PlainPipeline, load_pipeline
from dipp_ray.storage.aside import whole_file

SMALLEST_SIDE = 256  # of a written image, pixels; smaller ones are enlarged by a whole factor


def sample_to_file(folder: str | Path, prompt: str, seed: int, out: str | Path, family: str | None = None) -> Path:
    """Write the one-step image of `prompt` as a PNG, from the noise of torch.Generator().manual_seed(seed).

    Each pixel of an image below 256 pixels becomes a square of as many pixels as brings its shorter side there.
    family: 'package.module:Class' of one that the package does not know.
    A hub's id is a folder. Raises UserError where it holds no exported one-step generator, or `out` cannot be written.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {out.parent} to write {out.name} into: make it first")
    if not prompt.strip():
        raise UserError("the prompt is empty: give --prompt some words")
    plain = load_pipeline(folder, device_of_this_process(), read_frame(folder, family))
    if one_step_of_folder(folder) is None:
        raise UserError(
            f"{folder} is no one-step generator that was exported here (it has no one_step.json): give the pipeline/ "
            "of a run"
        )
    generator = torch.Generator().manual_seed(seed)
    image = plain.pipeline(prompt, generator=generator, **plain.arguments()).images[0]
    factor = math.ceil(SMALLEST_SIDE / min(image.size))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    with whole_file(out) as aside:
        image.save(aside, format="PNG")
    return out


@torch.no_grad()
def sample_images(
    plain: PlainPipeline, prompts: list[str], seed: int, steps: int, guidance_scale: float, batch: int
) -> Tensor:
    """Images [B, 3, H, W] in [0, 1], fp32 on the CPU, one a prompt, `batch` at a time.

    Image i begins at the noise of the key (seed, EVALUATION, 0, i): every pipeline is given the same noises.
    """
    decoder = LatentDecoder(plain.pipeline.vae)
    images = []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        noise = Draws(seed, EVALUATION, 0, range(start, start + len(some))).normal("z", plain.frame.latent_shape)
        latents = plain.latents(some, noise, steps, guidance_scale, short=True)
        images.append(decoder.decode(latents.float()).cpu())
    return torch.cat(images)
