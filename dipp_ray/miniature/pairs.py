"""Preference pairs: two images for one prompt, and how probably the stated annotator prefers the first.

The annotator is the gold reward. Its preference is Bradley-Terry's: sigmoid(sharpness (gold(a) - gold(b))). The label
is this probability itself, as if many annotators of one mind had been asked, not one draw by it.
"""

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from diffusers import PixArtAlphaPipeline
from PIL import Image
from torch import Tensor

from dipp_ray.miniature.digits import Scans, parse_prompts
from dipp_ray.miniature.gold import GoldReward
from dipp_ray.miniature.stages import Progress
from dipp_ray.miniature.teacher import sample_teacher
from dipp_ray.reporting.pace import Ticker

SCHEMA = pa.schema(
    [("prompt", pa.string()), ("image_a", pa.binary()), ("image_b", pa.binary()), ("label", pa.float32())]
)


@dataclass(frozen=True)
class PairsRecipe:
    seed: int = 14
    train: int = 16000
    test: int = 1000
    sharpness: float = 3.0
    samples: int = 600  # of the teacher, for each number of steps; the test part has a quarter of it
    sample_steps: tuple[int, ...] = (1, 2, 4, 8)
    guidance_scale: float = 1.5
    crispness_share: float = 0.6  # one image twice, differing in crispness alone
    wrong_share: float = 0.2  # a right against a wrong digit
    contrasts: tuple[float, float] = (0.25, 4.0)  # range of the factor, drawn evenly in its logarithm
    noise: float = 0.25  # largest deviation


class Candidates:
    """Images to choose from: scans, and samples of the teacher with few steps."""

    def __init__(self, scans: Scans, samples: Tensor, prompts: list[str], generator: torch.Generator):
        self.images = torch.cat([scans.images, samples])  # [N, 3, 8, 8] in [0, 1]
        self.digits = torch.cat([scans.digits, parse_prompts(prompts)[:, 0]])
        self.generator = generator

    def right(self, digits: Tensor) -> Tensor:
        """An image [B, 3, 8, 8] of each digit [B]."""
        return self._choose(digits[:, None] == self.digits)

    def wrong(self, digits: Tensor) -> Tensor:
        """An image [B, 3, 8, 8] of another digit than each of [B]."""
        return self._choose(digits[:, None] != self.digits)

    def blended(self, digits: Tensor) -> Tensor:
        """Right and wrong images [B, 3, 8, 8] laid over each other: the annotator is between the two."""
        share = torch.rand(len(digits), 1, 1, 1, generator=self.generator)
        return share * self.right(digits) + (1 - share) * self.wrong(digits)

    def _choose(self, allowed: Tensor) -> Tensor:
        return self.images[torch.multinomial(allowed.double(), 1, generator=self.generator)[:, 0]]


def draw_candidates(
    scans: Scans, pipeline: PixArtAlphaPipeline, samples: int, seed: int, recipe: PairsRecipe, progress: Progress
) -> Candidates:
    """The scans of one part and `samples` teacher samples for each number of steps in the recipe."""
    generator = torch.Generator().manual_seed(seed)
    images, prompts = [], []
    ticker = Ticker(progress, "miniature: teacher samples for the pairs, set", len(recipe.sample_steps))
    for index, steps in enumerate(recipe.sample_steps, start=1):
        rows = torch.randint(len(scans), (samples,), generator=generator)
        chosen = [scans.prompts[row] for row in rows]
        images.append(sample_teacher(pipeline, chosen, seed + index, steps, recipe.guidance_scale))
        prompts.extend(chosen)
        ticker.tick(index)
    return Candidates(scans, torch.cat(images), prompts, generator)


def make_pairs(count: int, scans: Scans, candidates: Candidates, gold: GoldReward, recipe: PairsRecipe) -> pa.Table:
    """`count` pairs for prompts of the scans, as a table of SCHEMA: PNG images 8x8 RGB, label in [0, 1]."""
    generator = candidates.generator
    rows = torch.randint(len(scans), (count,), generator=generator)
    prompts, digits = [scans.prompts[row] for row in rows], scans.digits[rows]
    kind = torch.rand(count, 1, 1, 1, generator=generator)
    crispness, wrong = kind < recipe.crispness_share, kind > 1 - recipe.wrong_share

    first, second = candidates.right(digits), candidates.right(digits)
    second = torch.where(crispness, first, second)
    # A third of the pairs that differ in the digit are blends, so that half-legible images are judged as well.
    blend = torch.rand(count, 1, 1, 1, generator=generator) < 1 / 3
    second = torch.where(wrong, torch.where(blend, candidates.blended(digits), candidates.wrong(digits)), second)
    noisy = ~crispness & (torch.rand(count, 1, 1, 1, generator=generator) < 1 / 3)
    first, second = (torch.where(noisy, with_noise(image, recipe.noise, generator), image) for image in (first, second))
    first, second = (with_contrast(image, recipe.contrasts, generator) for image in (first, second))
    swap = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    first, second = torch.where(swap, second, first), torch.where(swap, first, second)

    # What is labelled is what is stored: images of 8 bits.
    first, second = to_bytes(first), to_bytes(second)
    with torch.no_grad():
        rewards = [gold.reward(image.float() / 255, prompts) for image in (first, second)]
    label = torch.sigmoid(recipe.sharpness * (rewards[0] - rewards[1]))
    columns = [prompts, to_png(first), to_png(second), label.numpy()]
    return pa.table(columns, schema=SCHEMA)


def with_noise(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Grey Gaussian noise of a deviation of its own, even in [0, largest], on each image [B, 3, 8, 8] in [0, 1]."""
    level = largest * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (images + level * torch.randn(images[:, :1].shape, generator=generator)).clamp(0, 1)


def with_contrast(images: Tensor, factors: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Distances from middle grey times a factor, for images [B, 3, 8, 8] in [0, 1]; a quarter stay.

    Half of the others have one factor for the image, half one for each pixel: the annotator's opinion of each pixel
    is what a reward's gradient has to learn.
    """
    low, high = np.log(factors)
    share = torch.rand(len(images), 1, 1, 1, generator=generator)
    shares = torch.rand(images[:, :1].shape, generator=generator)
    grained = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    factor = torch.exp(low + (high - low) * torch.where(grained, shares, share))
    stay = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.25
    return torch.where(stay, images, 0.5 + factor * (images - 0.5)).clamp(0, 1)


def to_bytes(images: Tensor) -> Tensor:
    """[0, 1] -> uint8 0..255."""
    return (images * 255).round().to(torch.uint8)


def to_png(images: Tensor) -> list[bytes]:
    """uint8 [B, 3, H, W] -> PNG files."""
    files = []
    for image in images.permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    return files


def from_png(files: list[bytes]) -> Tensor:
    """PNG files of one size -> images [B, 3, H, W] in [0, 1]."""
    arrays = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    return torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
