"""Prompts, chosen by key."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dipp_ray.data.prompt_files import read_texts

if TYPE_CHECKING:  # a prompt file is read without torch
    from dipp_ray.diffusion.noise import Draws


@dataclass(frozen=True)
class Prompts:
    texts: tuple[str, ...]

    def of(self, draws: "Draws") -> list[str]:
        """The prompts of one micro-batch: each sample's is a function of its key alone, with replacement."""
        return [self.texts[i] for i in draws.integers("prompt", 0, len(self.texts)).tolist()]

    def first(self, count: int) -> list[str]:
        """`count` prompts spread evenly over the file, for grids and evaluation."""
        return [self.texts[i * len(self.texts) // count % len(self.texts)] for i in range(count)]


def read_prompts(paths: str | Sequence[str], column: str, key: str = "data.prompts") -> Prompts:
    """The prompts of the files that the setting `key` names. Raises UserError as `read_texts` does."""
    return Prompts(tuple(read_texts(paths, column, key)))
