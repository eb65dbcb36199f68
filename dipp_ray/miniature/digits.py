"""Real handwritten digits and the prompts that describe them.

scikit-learn's digits: 1,797 scans of 8x8 pixels. Ink and slant are measured from the image, so that they can be
measured on generated images as well; a prompt names the digit and its tercile of ink and of slant among the training
scans of that digit ("a bold right-slanted handwritten seven").
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from dipp_ray.errors import CallError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INKS = ("thin", "medium", "bold")
SLANTS = ("left-slanted", "upright", "right-slanted")
SPLIT_SEED = 0
TEST_SHARE = 500 / 1797
GREY_LEVELS = 16.0


def prompt_text(digit: int, ink: int, slant: int) -> str:
    """Digit 0..9, ink 0..2 (thin to bold), slant 0..2 (left to right) in words."""
    return f"a {INKS[ink]} {SLANTS[slant]} handwritten {DIGITS[digit]}"


MEANINGS = {
    prompt_text(digit, ink, slant): (digit, ink, slant) for digit in range(10) for ink in range(3) for slant in range(3)
}
ALL_PROMPTS = tuple(MEANINGS)


def parse_prompt(prompt: str) -> tuple[int, int, int]:
    """(digit, ink, slant) of a prompt. Raises CallError for text that is none of the 90 prompts."""
    if prompt not in MEANINGS:
        raise CallError(f"'{prompt}' is no prompt of the miniature: expected one such as '{ALL_PROMPTS[-1]}'")
    return MEANINGS[prompt]


def parse_prompts(prompts: list[str]) -> Tensor:
    """Meanings of prompts as int64 [B, 3]: digit, ink, slant."""
    return torch.tensor([parse_prompt(prompt) for prompt in prompts], dtype=torch.int64).reshape(-1, 3)


def measure_ink(images: Tensor) -> Tensor:
    """Mean brightness [B] in [0, 1] of images [B, 3, 8, 8] in [0, 1]."""
    return images.double().mean(dim=(1, 2, 3))


def measure_slant(images: Tensor) -> Tensor:
    """Lean to the right [B] of images [B, 3, 8, 8], in columns per row: cov(column, height) / var(height).

    A blank image has slant 0.
    """
    weight = images.double().mean(dim=1)
    weight = weight / weight.sum(dim=(1, 2), keepdim=True).clamp_min(1e-9)
    rows, columns = weight.shape[1:]
    height = -torch.arange(rows, dtype=torch.float64)[:, None].expand(rows, columns)  # rows are counted downwards
    column = torch.arange(columns, dtype=torch.float64).expand(rows, columns)
    height = height - (weight * height).sum(dim=(1, 2), keepdim=True)
    column = column - (weight * column).sum(dim=(1, 2), keepdim=True)
    return (weight * column * height).sum(dim=(1, 2)) / (weight * height**2).sum(dim=(1, 2)).clamp_min(1e-9)


@dataclass(frozen=True)
class Terciles:
    """Boundaries [10, 2] of ink and of slant: the lower and the upper one for each digit.

    They are fitted digit by digit: an eight has more ink than a one, and a global rule would leave kinds without scans.
    """

    ink: Tensor
    slant: Tensor

    @staticmethod
    def fit(images: Tensor, digits: Tensor) -> "Terciles":
        """From images [N, 3, 8, 8] in [0, 1] and their digits [N]."""
        share = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)

        def boundaries(values: Tensor) -> Tensor:
            return torch.stack([values[digits == digit].quantile(share) for digit in range(10)])

        return Terciles(boundaries(measure_ink(images)), boundaries(measure_slant(images)))

    def inks(self, images: Tensor, digits: Tensor) -> Tensor:
        """Tercile of ink [B] in 0..2 of images [B, 3, 8, 8] meant as `digits` [B]."""
        return (measure_ink(images)[:, None] > self.ink[digits]).sum(dim=1)

    def slants(self, images: Tensor, digits: Tensor) -> Tensor:
        """Tercile of slant [B] in 0..2 of images [B, 3, 8, 8] meant as `digits` [B]."""
        return (measure_slant(images)[:, None] > self.slant[digits]).sum(dim=1)


@dataclass(frozen=True)
class Scans:
    """Images [N, 3, 8, 8] in [0, 1], their digits [N] in 0..9, their N prompts, their rows [N] in the whole set."""

    images: Tensor
    digits: Tensor
    prompts: tuple[str, ...]
    rows: Tensor

    def __len__(self) -> int:
        return len(self.images)


@cache
def load_scans() -> tuple[Scans, Scans, Terciles]:
    """The train part (1,297 scans), the test part (500 scans) and the terciles of the train part; always the same."""
    data = load_digits()
    images = torch.tensor(data.images / GREY_LEVELS, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)
    digits = torch.tensor(data.target, dtype=torch.int64)
    train_rows, test_rows = stratified_split(data.target, SPLIT_SEED)
    terciles = Terciles.fit(images[train_rows], digits[train_rows])

    def part(rows: Tensor) -> Scans:
        chosen, meant = images[rows], digits[rows]
        attributes = zip(
            meant.tolist(), terciles.inks(chosen, meant).tolist(), terciles.slants(chosen, meant).tolist(), strict=True
        )
        return Scans(chosen, meant, tuple(prompt_text(*attribute) for attribute in attributes), rows)

    return part(train_rows), part(test_rows), terciles


def stratified_split(digits: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of the train and of the test part, ascending: of each digit, TEST_SHARE go to the test part."""
    generator = np.random.Generator(np.random.PCG64(seed))
    test = np.concatenate(
        [
            generator.permutation(np.flatnonzero(digits == digit))[: round(TEST_SHARE * (digits == digit).sum())]
            for digit in range(10)
        ]
    )
    is_test = np.zeros(len(digits), dtype=bool)
    is_test[test] = True
    return torch.tensor(np.flatnonzero(~is_test)), torch.tensor(np.flatnonzero(is_test))
