"""From latents to the pixels that a person sees: the one place of decode, scaling, shift and clamp."""

from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from dipp_ray.errors import UserError
from dipp_ray.hub.fetch import local
from dipp_ray.hub.selection import weights_of
from dipp_ray.models.components import load_model
from dipp_ray.models.vae_folder import VaeFolder, find_vae, is_of_videos, pixels_per_latent


class LatentDecoder(nn.Module):
    """A diffusers VAE, frozen, between latents in the diffusion model's scale and images in [0, 1].

    The clamp is hard. Outside the range its gradient is zero, which is the exact gradient of what a person sees:
    a pixel that is already white does not get whiter. Inside the range, and on its border, it is the identity's.
    """

    vae: Any  # a VAE of diffusers

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        config = vae.config
        self.videos = is_of_videos(config)
        self.latent_channels = config["z_dim"] if self.videos else config["latent_channels"]
        self.factor = pixels_per_latent(config)  # pixels of an image's side per latent
        self.scaling: Any = config.get("scaling_factor") or 1.0
        self.shift: Any = config.get("shift_factor") or 0.0
        if config.get("latents_mean") is not None:  # channel by channel, and no shift_factor beside it
            mean, std = (torch.tensor(config[key])[:, None, None] for key in ("latents_mean", "latents_std"))
            self.scaling, self.shift = self.scaling / std, mean

    @classmethod
    def from_folder(
        cls, folder: str | Path, dtype: torch.dtype = torch.float32, checkpoint: bool = False
    ) -> "LatentDecoder":
        """Load the VAE of a diffusers pipeline folder, or of a VAE's own; a hub's id is a folder. Raises UserError.

        checkpoint: the backward pass recomputes activations, so that less memory is held.
        """
        found = find_vae(local(folder, weights_of("vae")))
        if not hasattr(diffusers, found.kind):
            raise UserError(f"{folder}: its VAE is a {found.kind}, which this diffusers does not have: take another")
        vae = load_model(found.path, "diffusers", found.kind, dtype)
        return cls(_recomputed(vae) if checkpoint else vae)

    @classmethod
    def empty(cls, found: VaeFolder, checkpoint: bool = False) -> "LatentDecoder":
        """The same on the meta device, without weights."""
        with torch.device("meta"):
            vae = getattr(diffusers, found.kind).from_config(found.config)
        return cls(_recomputed(vae) if checkpoint else vae)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, h, w] in the model's scale -> images [B, 3, H, W] in [0, 1], in the latents' dtype."""
        z = latents.to(self.vae.dtype) / self._on(self.scaling, latents) + self._on(self.shift, latents)
        images = self.vae.decode(z[:, :, None]).sample[:, :, 0] if self.videos else self.vae.decode(z).sample
        return ((images + 1) / 2).clamp(0, 1).to(latents.dtype)

    def _on(self, value: Any, latents: torch.Tensor) -> Any:
        return value.to(latents.device, self.vae.dtype) if isinstance(value, torch.Tensor) else value

    forward = decode

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] -> the mode of their latents [B, C, h, w] in the model's scale."""
        given = (images * 2 - 1).to(self.vae.dtype)
        encoded = self.vae.encode(given[:, :, None] if self.videos else given)
        z = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()  # a deep one has no spread
        z = z[:, :, 0] if self.videos else z
        return ((z - self._on(self.shift, images)) * self._on(self.scaling, images)).to(images.dtype)


def _recomputed(vae: Any) -> Any:
    """A VAE whose backward pass recomputes activations: of its blocks, and within each of them of one residual layer
    after the other, of which those at full size take most. At 512 pixels the decoder of SD 1.5 takes 5.7 GiB without,
    3.1 by blocks alone, and 1.8 so. Raises UserError where its decoder has no such blocks."""
    if vae._supports_gradient_checkpointing:
        vae.enable_gradient_checkpointing()  # of the blocks
        layers = [layer for layer in vae.modules() if isinstance(layer, ResnetBlock2D)]
    else:
        layers = _layers(vae)
    again = _again_without_cache if is_of_videos(vae.config) else partial(recompute, use_reentrant=False)
    for layer in layers:
        layer.forward = partial(again, layer.forward)
    return vae


def _layers(vae: Any) -> list[nn.Module]:
    """The blocks of a decoder that the library recomputes nothing of, and the layers in each of them."""
    blocks = getattr(getattr(vae, "decoder", None), "up_blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise UserError(
            f"the decoder of an {type(vae).__name__} cannot recompute its activations: leave checkpoint_decoder out"
        )
    found = list(blocks)
    for block in blocks:
        for child in block.children():
            found += list(child) if isinstance(child, nn.ModuleList) else [child]
    return found


def _again_without_cache(forward: Any, x: torch.Tensor, feat_cache: Any = None, feat_idx: Any = None, **more: Any):
    """As `recompute`, of a layer of videos. It would read what the frame before has left in the cache, and find there
    what it left itself when it comes again; a picture is the first frame, which has none before it."""
    return recompute(forward, x, use_reentrant=False, **more)
