"""Preference pairs: two images for one prompt, and how probably a person prefers the first."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image, UnidentifiedImageError

from dipp_ray.errors import UserError
from dipp_ray.rewards.preprocess import to_square

COLUMNS = ("prompt", "image_a", "image_b", "label")


@dataclass(frozen=True)
class Pairs:
    """N pairs in memory. prompts: the distinct texts; prompt [N]: indices into them; a, b: uint8 [N, 3, size, size];
    label [N]: probability in [0, 1] that a is preferred.
    """

    prompts: list[str]
    prompt: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    label: torch.Tensor

    def __len__(self) -> int:
        return len(self.label)


def check_pairs(path: str | Path) -> int:
    """The number of pairs in a parquet file, its columns checked. Raises UserError."""
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"preference pairs {path}: {str(error).splitlines()[0]}") from None
    missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
    if missing:
        raise UserError(f"preference pairs {path}: no column {', '.join(missing)}: it needs {', '.join(COLUMNS)}")
    if file.metadata.num_rows == 0:
        raise UserError(f"preference pairs {path} is empty: give at least one pair")
    return file.metadata.num_rows


def read_pairs(path: str | Path, size: int) -> Pairs:
    """All pairs of a parquet file, images (PNG or JPEG bytes) brought to size x size as the model sees them.

    Raises UserError for a missing column, an image that does not decode, or a label outside [0, 1].
    """
    check_pairs(path)
    table = pyarrow.parquet.read_table(path, columns=list(COLUMNS))
    label = table["label"].to_numpy().astype(np.float32)
    if not ((label >= 0) & (label <= 1)).all():
        raise UserError(f"preference pairs {path}: a label is no probability: give values in [0, 1]")
    prompts = table["prompt"].to_pylist()
    distinct = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    return Pairs(
        list(distinct),
        torch.tensor([distinct[prompt] for prompt in prompts]),
        _images(table["image_a"], size, path),
        _images(table["image_b"], size, path),
        torch.from_numpy(label),
    )


def _images(column: pyarrow.ChunkedArray, size: int, path: str | Path) -> torch.Tensor:
    images = torch.empty(len(column), 3, size, size, dtype=torch.uint8)
    for row, data in enumerate(column):
        try:
            image = torch.from_numpy(np.array(Image.open(io.BytesIO(data.as_py())).convert("RGB"))).permute(2, 0, 1)
        except (UnidentifiedImageError, OSError, TypeError):
            raise UserError(
                f"preference pairs {path}: an image of row {row} does not decode: write PNG bytes"
            ) from None
        images[row] = to_square(image[None], size)[0].round().clamp(0, 255)
    return images
