"""Images as PNG, and back. What is measured is what the files hold: 8 bits a channel."""

import numpy as np
import torch
from torch import Tensor

from dipp_ray.errors import NonFiniteError
from dipp_ray.preferences.images import FORMATS, LARGEST_ASPECT, LARGEST_PIXELS
from dipp_ray.rewards import pictures
from dipp_ray.rewards.preprocess import levels


def to_pngs(images: Tensor) -> list[bytes]:
    """Of images [B, 3, H, W] in [0, 1]. Raises NonFiniteError where one is not finite."""
    bad = int((~images.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise NonFiniteError(f"evaluation: {bad} of {len(images)} images hold values that are not finite")
    return [pictures.png_of(pixels) for pixels in levels(images)]


def from_pngs(files: list[bytes]) -> Tensor:
    """Images [B, 3, H, W] in [0, 1], fp32, of files of one size."""
    return torch.stack([from_picture(file) for file in files])


def from_picture(file: bytes) -> Tensor:
    """[3, H, W] in [0, 1], fp32, of a PNG, JPEG or WebP. Raises pictures.PictureError."""
    picture = pictures.decode(file, FORMATS, LARGEST_PIXELS, LARGEST_ASPECT)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
