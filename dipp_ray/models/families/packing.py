"""Latents packed two by two into the tokens of a transformer, as FLUX.1 and Qwen-Image read them."""

from typing import Any

from torch import Tensor

from dipp_ray.models.families.family import Family


class Packed(Family):
    """What families of packed latents share: their networks say no size, and count channels of tokens."""

    @property
    def channels(self) -> int:
        return self.network["in_channels"] // 4

    @property
    def patch(self) -> int:
        return 2

    @property
    def sample_size(self) -> Any:
        return 128  # the pipelines' own

    def packed(self, latents: Tensor) -> Tensor:
        return pack(latents)

    def unpacked(self, latents: Tensor) -> Tensor:
        return unpack(latents, *self.latent_shape[1:])


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h/2 w/2, 4 C]: a token holds each channel's two by two latents, one channel after another."""
    batch, channels, height, width = latents.shape
    cells = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse; height and width h, w are in latents."""
    batch, _, channels = tokens.shape
    cells = tokens.reshape(batch, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(batch, channels // 4, height, width)
