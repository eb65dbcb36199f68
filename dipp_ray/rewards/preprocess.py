"""Images as a vision tower wants them, differentiably and deterministically.

The original models read 8-bit images through PIL's antialiased bicubic. On photographs the functions here agree with
that to 57 dB, which is the rounding to 8 bits; without antialiasing it would be 23 to 38 dB. Nothing is clamped: PIL
cuts off what bicubic overshoots [0, 1], which on photographs is worth .8 dB at most, but a clamp would have no gradient
there. (At hard edges between black and white it matters: 31 dB instead of 44 on a checkerboard of such pixels.)
"""

import functools

import numpy as np
import torch
from torch.nn import functional as F


@functools.lru_cache(maxsize=16)
def resize_matrix(size_in: int, size_out: int) -> torch.Tensor:
    """The linear map [size_out, size_in] of an antialiased bicubic resize along one axis, fp64 on the CPU.

    It is read off torch's own resize, applied to the unit vectors.
    """
    unit = torch.eye(size_in, dtype=torch.float64)
    return F.interpolate(unit[None, None], size=(size_out, size_in), mode="bicubic", antialias=True)[0, 0]


def resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Images [B, C, H, W] -> [B, C, height, width]: bicubic with antialiasing, in fp32 or better.

    Two matrix products, because the backward pass of CUDA's own bicubic adds in no fixed order, and because fp16 and
    bf16 resizing is neither precise nor everywhere implemented. Not clamped: see above.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    with torch.autocast(images.device.type, enabled=False):
        if images.shape[-2] != height:
            images = resize_matrix(images.shape[-2], height).to(images) @ images
        if images.shape[-1] != width:
            images = images @ resize_matrix(images.shape[-1], width).to(images).T
    return images


def to_square(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images [B, C, H, W] -> [B, C, size, size]: the short side resized, the middle of the long side kept.

    As transformers' CLIPImageProcessor: of an odd surplus, the smaller half is cut at the top or left.
    """
    images = _short_side(images, size)
    return _window(images, size, (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2)


def to_square_torchvision(images: torch.Tensor, size: int) -> torch.Tensor:
    """`to_square` as torchvision's Resize and CenterCrop: half of an odd surplus is rounded to the even number."""
    images = _short_side(images, size)
    return _window(images, size, round((images.shape[-2] - size) / 2), round((images.shape[-1] - size) / 2))


def pad_to_square(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images [B, C, H, W] in [0, 1] -> [B, C, size, size]: the long side resized, black on both sides of the other.

    As open_clip's ResizeMaxSize with its zero fill, which lies before the normalisation; of an odd gap, the larger half
    is at the bottom or right. (The original leaves an oblong image that already has the long side unpadded, which its
    network then refuses; here it is padded.)
    """
    scale = size / max(images.shape[-2:])
    height, width = (round(side * scale) for side in images.shape[-2:])
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(resize(images, height, width), (left, size - width - left, top, size - height - top))


def _short_side(images: torch.Tensor, size: int) -> torch.Tensor:
    height, width = images.shape[-2:]
    short = min(height, width)
    return resize(images, size * height // short, size * width // short)


def _window(images: torch.Tensor, size: int, top: int, left: int) -> torch.Tensor:
    return images[..., top : top + size, left : left + size]


def normalise(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """(images - mean) / std for each channel; images [B, C, H, W] in [0, 1]."""
    return (images - images.new_tensor(mean).view(-1, 1, 1)) / images.new_tensor(std).view(-1, 1, 1)


def levels(images: torch.Tensor) -> np.ndarray:
    """Finite images [B, 3, H, W], clamped to [0, 1] -> uint8 [B, H, W, 3] on the CPU, as pictures' files have."""
    rounded = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).cpu().numpy()
