"""Images as Qwen2-VL's vision tower wants them, differentiably: what Qwen2VLImageProcessor does, without rounding."""

import math

import torch

from dipp_ray.errors import CallError

MOST_ASPECT = 200


def size_for(height: int, width: int, factor: int, pixels: int) -> tuple[int, int]:
    """The size to which an image of height x width is brought: multiples of `factor` of about `pixels` in all.

    As the original rounds, with its least and most pixels the same: down where the rounded image would have more than
    `pixels`, up where it would have fewer. Raises CallError for an image that is more than MOST_ASPECT times as long
    as wide, which the original refuses.
    """
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise CallError(f"an image of {height} x {width} was sent: one side is at most {MOST_ASPECT} times the other")
    rounded = [max(factor, round(side / factor) * factor) for side in (height, width)]
    if math.prod(rounded) > pixels:
        scale = math.sqrt(height * width / pixels)
        rounded = [max(factor, math.floor(side / scale / factor) * factor) for side in (height, width)]
    elif math.prod(rounded) < pixels:
        scale = math.sqrt(pixels / (height * width))
        rounded = [math.ceil(side * scale / factor) * factor for side in (height, width)]
    return rounded[0], rounded[1]


def patches_of(images: torch.Tensor, patch: int, merge: int, frames: int) -> torch.Tensor:
    """Images [B, C, H, W] -> patches [B, H/patch * W/patch, C * frames * patch * patch].

    Patches that are merged into one token lie together: blocks of merge x merge, row by row, and within a block row by
    row. A still image is `frames` equal frames.
    """
    batch, channels, height, width = images.shape
    block = patch * merge
    cut = images.reshape(batch, channels, height // block, merge, patch, width // block, merge, patch)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [B, block row, block column, row, column, C, patch, patch]
    still = cut.unsqueeze(6).expand(*cut.shape[:6], frames, patch, patch)
    return still.reshape(batch, (height // patch) * (width // patch), channels * frames * patch * patch)
