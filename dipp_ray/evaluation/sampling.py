"""Images from a pipeline folder as a person gets them: plain diffusers, nothing of the trainer's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.plain_pipeline import PlainPipeline


@torch.no_grad()
def sample_images(
    plain: PlainPipeline,
    prompts: list[str],
    seed: int,
    steps: int,
    guidance_scale: float | None,
    batch: int,
    numbers: Sequence[int] | None = None,
) -> Tensor:
    """Images [B, 3, H, W] in [0, 1], fp32 on the CPU, one a prompt, `batch` at a time.

    Image i begins at the noise of the key (seed, EVALUATION, 0, numbers[i]), by default i: every pipeline is given the
    same noises.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    decoder = LatentDecoder(plain.pipeline.vae)
    images = []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        noise = Draws(seed, EVALUATION, 0, numbers[start : start + batch]).normal("z", plain.frame.latent_shape)
        latents = plain.latents(some, noise, steps, guidance_scale, short=True)
        images.append(decoder.decode(latents.float()).cpu())
    return torch.cat(images)
