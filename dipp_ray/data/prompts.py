"""Prompts from a parquet file, local or on s3, chosen by key."""

from dataclasses import dataclass

import fsspec
import pyarrow
import pyarrow.parquet

from dipp_ray.diffusion.noise import Draws
from dipp_ray.errors import UserError


@dataclass(frozen=True)
class Prompts:
    texts: tuple[str, ...]

    def of(self, draws: Draws) -> list[str]:
        """The prompts of one micro-batch: each sample's is a function of its key alone, with replacement."""
        return [self.texts[i] for i in draws.integers("prompt", 0, len(self.texts)).tolist()]

    def first(self, count: int) -> list[str]:
        """`count` prompts spread evenly over the file, for grids and evaluation."""
        return [self.texts[i * len(self.texts) // count % len(self.texts)] for i in range(count)]


def read_prompts(path: str, column: str, key: str = "data.prompts") -> Prompts:
    """Read `column` of the parquet file at `path`, which the setting `key` names.

    Raises UserError where there is nothing to read.
    """
    try:
        with fsspec.open(path, "rb") as file:
            table = pyarrow.parquet.ParquetFile(file)
            if column not in table.schema_arrow.names:
                names = ", ".join(table.schema_arrow.names) or "none"
                raise UserError(f"prompt file {path} has no column '{column}' (it has: {names}): set data.column")
            texts = table.read([column])[column].to_pylist()
    except FileNotFoundError:
        raise UserError(f"prompt file {path} does not exist: set {key} to a parquet file") from None
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"prompt file {path} is not parquet ({error})") from None
    if not texts:
        raise UserError(f"prompt file {path} holds no prompts: its column '{column}' has no rows")
    if any(not isinstance(text, str) or not text.strip() for text in texts):
        raise UserError(f"prompt file {path}: column '{column}' holds empty or non-text rows: remove them")
    return Prompts(tuple(texts))
