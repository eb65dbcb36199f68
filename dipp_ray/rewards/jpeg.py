"""JPEG compressibility: a reward without a gradient, for holding out and for trying black-box objectives."""

import io
import math

import torch
from PIL import Image

from dipp_ray.rewards.preprocess import levels

QUALITY = 95
BYTES_PER_KILOBYTE = 1000


class JpegReward:
    """r(x) = -(kilobytes of x as a JPEG at quality 95); the prompt is ignored. Black et al. 2023 (DDPO).

    Range: below 0; at 512 x 512 pixels -5 for a plain surface, -308 for white noise.
    """

    differentiable = False

    def reward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] -> rewards [B] in fp32 or better, on the images' device."""
        pixels = levels(images.nan_to_num())
        sizes = [_jpeg_bytes(Image.fromarray(image)) / BYTES_PER_KILOBYTE for image in pixels]
        sizes = [size if torch.isfinite(image).all() else math.nan for size, image in zip(sizes, images, strict=True)]
        return -torch.tensor(sizes, dtype=torch.promote_types(images.dtype, torch.float32), device=images.device)


def _jpeg_bytes(image: Image.Image) -> int:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell()
