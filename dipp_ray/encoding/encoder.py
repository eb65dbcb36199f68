"""Encodes shards of prompts, each written whole or not at all."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from dipp_ray.config import RunConfig
from dipp_ray.data.embeddings import STORED, Encoding
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.errors import UserError
from dipp_ray.models.text import text_encoder
from dipp_ray.storage.files import whole_object
from dipp_ray.storage.remote import asked, file_system

FULL = "free space, or choose another folder; the same command goes on with what is missing"


class Encoder:
    """Encodes prompts by the teacher's own encoders, one after the other where bits matter."""

    def __init__(self, config: RunConfig, device: torch.device):
        self.text = text_encoder(config, device, 0)  # nothing is asked for twice

    def layout(self, prompt: str, dtype: str) -> dict[str, Any]:
        """What `Encoding` says of parts and their sizes, from the embeddings of one prompt; and their bytes in `dtype`,
        in which they will be stored."""
        embeds = self.text.row(prompt)
        _, length, width = embeds.tokens.shape
        return {
            "mask": None if embeds.mask is None else str(embeds.mask.dtype).removeprefix("torch."),
            "length": length if embeds.mask is None else None,
            "width": width,
            "pooled": None if embeds.pooled is None else embeds.pooled.shape[1],
            "bytes": embeds.to("cpu", STORED[dtype]).nbytes,
        }

    def write(self, encoding: Encoding, folder: str, name: str, texts: Sequence[str]) -> None:
        """Encode `texts` into the file `name` of the folder, which appears when all of it is there.

        Raises StorageUnavailable where its disk or store fails at last.
        """
        fs, root = file_system(folder)
        with asked(folder), whole_object(fs, f"{root}/{name}", FULL) as file:
            # Numbers neither repeat nor shrink, and nobody asks for their extremes.
            plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
            with pyarrow.parquet.ParquetWriter(file, _schema(encoding), **plain) as writer:
                for table in self._tables(encoding, texts):
                    writer.write_table(table, row_group_size=encoding.group)

    def _tables(self, encoding: Encoding, texts: Sequence[str]) -> Iterator[pyarrow.Table]:
        piece = max(1, self.text.together // encoding.group) * encoding.group  # whole groups
        for start in range(0, len(texts), piece):
            some = texts[start : start + piece]
            rows = [_row(encoding, *row) for row in zip(some, self.text.rows(some), strict=True)]
            yield pyarrow.Table.from_pylist(rows, _schema(encoding))


def _row(encoding: Encoding, text: str, embeds: PromptEmbeds) -> dict[str, Any]:
    _agree(encoding, embeds)
    row = {"prompt": text, "length": embeds.tokens.shape[1], "tokens": _stored(embeds.tokens, encoding, text)}
    if embeds.mask is not None:
        row["mask"] = embeds.mask.to(torch.uint8).numpy().tobytes()
    if embeds.pooled is not None:
        row["pooled"] = _stored(embeds.pooled, encoding, text)
    return row


def _schema(encoding: Encoding) -> pyarrow.Schema:
    columns = {"prompt": pyarrow.string(), "length": pyarrow.int32(), "tokens": pyarrow.binary()}
    columns |= {} if encoding.mask is None else {"mask": pyarrow.binary()}
    columns |= {} if encoding.pooled is None else {"pooled": pyarrow.binary()}
    return pyarrow.schema(columns)


def _agree(encoding: Encoding, embeds: PromptEmbeds) -> None:
    """Raise RuntimeError where one prompt's embeddings have other parts or widths than the first one's had."""
    tokens, mask, pooled = embeds.parts
    found = (tokens.shape[2], mask is None, None if pooled is None else pooled.shape[1])
    expected = (encoding.width, encoding.mask is None, encoding.pooled)
    if found != expected or encoding.length not in (None, tokens.shape[1]):
        raise RuntimeError(f"embeddings of one shape were followed by others: {expected}, then {found}")


def _stored(numbers: Tensor, encoding: Encoding, text: str) -> bytes:
    """The bytes in the stored dtype. Raises UserError where a number is not finite, or does not fit."""
    stored = numbers.to(STORED[encoding.dtype])
    if not stored.isfinite().all():
        if numbers.isfinite().all():
            raise UserError(f"an embedding of {text!r} is too large for {encoding.dtype}: choose --dtype bf16 or fp32")
        raise UserError(f"an embedding of {text!r} is not finite: encode with roles.text.dtype=fp32")
    return stored.contiguous().view(torch.uint8).numpy().tobytes()
