"""The miniature's AutoencoderKL: images 3x8x8, latents 1x8x8 of mean 0 and, once scaled, unit deviation."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from dipp_ray.miniature.digits import Scans
from dipp_ray.miniature.stages import Progress, seeded
from dipp_ray.reporting.pace import Ticker


@dataclass(frozen=True)
class AutoencoderRecipe:
    seed: int = 11
    steps: int = 600
    batch: int = 64
    lr: float = 2e-3
    width: int = 32
    kl_weight: float = 1e-4  # against the squared error, both means over elements
    pixel_noise: float = 0.03  # of the inputs: generated latents lie beside the scans' too
    sizes: tuple[int, int] = (8, 1)  # edge of an image in pixels, channels of a latent


def train_autoencoder(scans: Scans, recipe: AutoencoderRecipe, progress: Progress) -> AutoencoderKL:
    """Fit to the scans; the loss is the squared error in [-1, 1] plus `kl_weight` times the KL to N(0, 1)."""
    with seeded(recipe.seed):
        vae = AutoencoderKL(
            block_out_channels=(recipe.width,),
            norm_num_groups=8,
            latent_channels=recipe.sizes[1],
            sample_size=recipe.sizes[0],
            mid_block_add_attention=False,
        )
    generator = torch.Generator().manual_seed(recipe.seed)
    data = to_model(scans.images)
    optimiser = torch.optim.Adam(vae.parameters(), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=recipe.steps)
    ticker = Ticker(progress, "miniature: autoencoder step", recipe.steps)
    vae.train()
    for step in range(1, recipe.steps + 1):
        clean = data[torch.randint(len(data), (recipe.batch,), generator=generator)]
        # One noise for the three channels: grey images stay grey.
        noise = recipe.pixel_noise * torch.randn(clean[:, :1].shape, generator=generator)
        clean = clean + noise
        posterior = vae.encode(clean).latent_dist
        decoded = vae.decode(posterior.sample(generator=generator)).sample
        error = (decoded - clean).square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        optimiser.zero_grad()
        (error + recipe.kl_weight * kl).backward()
        optimiser.step()
        schedule.step()
        ticker.tick(step, f"squared error {error.item():.5f}")
    vae.eval().requires_grad_(False)
    centre(vae, data)
    return vae


@torch.no_grad()
def centre(vae: AutoencoderKL, data: Tensor) -> None:
    """Move the latents' mean to 0 and set `scaling_factor` so that they have unit deviation over `data`.

    PixArt knows no shift_factor, so the mean goes into the biases of the two 1x1 convolutions around the latent: the
    decoded images stay the same.
    """
    latents = vae.encode(data).latent_dist.mean
    channels = latents.shape[1]
    mean = latents.mean(dim=(0, 2, 3))
    vae.quant_conv.bias[:channels] -= mean
    vae.post_quant_conv.bias += vae.post_quant_conv.weight.flatten(1) @ mean
    vae.register_to_config(scaling_factor=1.0 / latents.std().item())


def to_model(images: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]."""
    return 2 * images - 1


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents [B, 1, 8, 8] in the model's scale of images [B, 3, 8, 8] in [0, 1]: the posterior's mean."""
    return vae.encode(to_model(images)).latent_dist.mean * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Images [B, 3, 8, 8] in [0, 1] of latents [B, 1, 8, 8] in the model's scale."""
    return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def reconstruction_error(vae: AutoencoderKL, images: Tensor) -> float:
    """Root mean square error of decode(encode(images)) for images [B, 3, 8, 8], in units of the range [0, 1]."""
    return (decode(vae, encode(vae, images)) - images).double().square().mean().sqrt().item()
