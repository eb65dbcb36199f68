"""Images as a vision tower wants them, differentiably and deterministically."""

import functools

import torch
from torch.nn import functional as F


@functools.lru_cache(maxsize=64)
def resize_matrix(size_in: int, size_out: int) -> torch.Tensor:
    """The linear map [size_out, size_in] of an antialiased bicubic resize along one axis, fp64 on the CPU.

    It is read off torch's own resize, applied to the unit vectors.
    """
    unit = torch.eye(size_in, dtype=torch.float64)
    return F.interpolate(unit[None, None], size=(size_out, size_in), mode="bicubic", antialias=True)[0, 0]


def resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Images [B, C, H, W] -> [B, C, height, width]: bicubic with antialiasing, in fp32 or better.

    Two matrix products, because the backward pass of CUDA's own bicubic adds in no fixed order, and because fp16 and
    bf16 resizing is neither precise nor everywhere implemented. Not clamped: bicubic may overshoot by a little.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    with torch.autocast(images.device.type, enabled=False):
        if images.shape[-2] != height:
            images = resize_matrix(images.shape[-2], height).to(images) @ images
        if images.shape[-1] != width:
            images = images @ resize_matrix(images.shape[-1], width).to(images).T
    return images


def to_square(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images [B, C, H, W] -> [B, C, size, size]: the short side resized, the middle of the long side kept (CLIP)."""
    height, width = images.shape[-2:]
    short = min(height, width)
    height, width = size * height // short, size * width // short
    images = resize(images, height, width)
    top, left = (height - size) // 2, (width - size) // 2
    return images[..., top : top + size, left : left + size]


def normalise(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """(images - mean) / std for each channel; images [B, C, H, W] in [0, 1]."""
    return (images - images.new_tensor(mean).view(-1, 1, 1)) / images.new_tensor(std).view(-1, 1, 1)
