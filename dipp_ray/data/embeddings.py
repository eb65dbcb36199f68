"""A folder of embeddings, as `dipp-ray encode` writes it, read by row.

    shard-000000.parquet ...    `rows` prompts each, in the prompts' order, in row groups of `group` rows: the text, its
                                tokens [L, D], mask [L] and pooled embeddings [P], each as the bytes of the stored dtype
    _null.parquet               one such row, of ''
    _encoded.json               the record of all that, written last: a folder without it is not finished

Tokens are stored as they were encoded, so a row weighs what its prompt is long; batches are padded and trimmed by the
functions by which a text encoder's are. Little-endian.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow
import torch
from pydantic import ValidationError
from torch import Tensor

from dipp_ray.data.files import BESIDE
from dipp_ray.data.row_groups import REMEMBERED, Groups, ParquetRows
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.errors import UserError
from dipp_ray.settings import Section
from dipp_ray.storage.files import is_there
from dipp_ray.storage.hashing import hash_of_json
from dipp_ray.storage.remote import asked, file_system, in_one_sentence

RECORD, JOB, NULL_ROW = BESIDE
PARTS = ("length", "tokens", "mask", "pooled")
OPEN_SHARDS = 64  # whose footers are remembered
StoredDtype = Literal["fp32", "fp16", "bf16"]
STORED: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BITS = {"fp32": np.int32, "fp16": np.int16, "bf16": np.int16}  # NumPy has no bf16


@dataclass(frozen=True)
class Rows:
    """Rows of a run's embeddings, which travel where embeddings would; `ahead` are likely to be wanted next."""

    numbers: tuple[int, ...]
    ahead: tuple[int, ...] = ()


NULL = Rows(())  # the null prompt's, which has no number


class Encoding(Section):
    """What is encoded, by what, and how it is laid out."""

    format: Literal[1] = 1
    encoder: dict[str, Any]  # see `text_identity`
    count: int  # prompts
    sha256: str  # of all texts in their order: see `Prompts.digest`
    groups: list[int]  # rows of the prompts' own groups, by which an epoch is ordered
    dtype: StoredDtype
    rows: int  # of a shard
    group: int  # rows of a row group
    mask: str | None  # dtype of the mask; null: there is none
    length: int | None  # L of every prompt where there is no mask
    width: int  # D
    pooled: int | None  # P

    @property
    def shards(self) -> list[str]:
        return [f"shard-{i:06}.parquet" for i in range(-(-self.count // self.rows))]

    def rows_of(self, shard: int) -> range:
        return range(shard * self.rows, min(self.count, (shard + 1) * self.rows))


class Record(Encoding):
    """The same of a finished folder, with the bytes of each file."""

    sizes: dict[str, int]

    def digest(self) -> str:
        """What it is known by wherever it lies: encoders, prompts, layout and sizes, as a hash."""
        return hash_of_json(self.model_dump(exclude_defaults=True))  # so that it outlives fields that come later


class Embeddings:
    """The embeddings in a folder, local or s3://, of whose row groups `limit` bytes are held.

    Raises UserError where the folder is none of finished embeddings, or a file of it cannot be read.
    """

    def __init__(self, folder: str, limit: int = REMEMBERED):
        self.folder, self.record = folder, read_record(folder)
        self.groups = self._shards(folder, PARTS, limit)

    @cached_property
    def null(self) -> PromptEmbeds:
        """Of the null prompt: one row."""
        fs, root = file_system(self.folder)
        table = ParquetRows(fs, f"{root}/{NULL_ROW}", f"{self.folder}/{NULL_ROW}", self._columns(PARTS)).read(0)
        return self._row(table, 0)

    def at(self, rows: Sequence[int]) -> PromptEmbeds:
        """Of these rows, in the stored dtype, on the CPU: a batch as a `TextEncoder` makes it."""
        return PromptEmbeds.concatenate(*self.groups.at(rows, self._row)).trimmed()

    def of(self, given: Rows) -> PromptEmbeds:
        """Of what travelled in the place of embeddings."""
        if given == NULL:
            return self.null
        found = self.at(given.numbers)
        self.groups.ahead(given.ahead)
        return found

    def texts(self) -> Groups:
        """The prompts themselves, as `open_texts` gives them."""
        return self._shards(self.folder, ["prompt"], REMEMBERED)

    def _columns(self, columns: Sequence[str]) -> list[str]:
        absent = {"mask": self.record.mask is None, "pooled": self.record.pooled is None}
        return [column for column in columns if not absent.get(column)]

    def _shards(self, folder: str, columns: Sequence[str], limit: int) -> Groups:
        fs, root = file_system(folder)
        columns, names = self._columns(columns), self.record.shards

        @lru_cache(OPEN_SHARDS)
        def opened(shard: int) -> ParquetRows:
            return ParquetRows(fs, f"{root}/{names[shard]}", f"{folder}/{names[shard]}", columns)

        return _ShardGroups(self.record, lambda shard, group: opened(shard).read(group), limit)

    def _row(self, table: pyarrow.Table, row: int) -> PromptEmbeds:
        record = self.record
        length = table.column("length")[row].as_py()
        tokens = self._floats(table, "tokens", row, length * record.width).reshape(1, length, record.width)
        mask = pooled = None
        if record.mask is not None:
            read = self._numbers(table, "mask", row, length, np.uint8)
            mask = read.to(getattr(torch, record.mask)).reshape(1, length)
        if record.pooled is not None:
            pooled = self._floats(table, "pooled", row, record.pooled).reshape(1, record.pooled)
        return PromptEmbeds(tokens, mask, pooled)

    def _floats(self, table: pyarrow.Table, column: str, row: int, count: int) -> Tensor:
        return self._numbers(table, column, row, count, BITS[self.record.dtype]).view(STORED[self.record.dtype])

    def _numbers(self, table: pyarrow.Table, column: str, row: int, count: int, kind: Any) -> Tensor:
        """A copy of so many numbers. Raises UserError where there are others."""
        held = table.column(column)[row].as_buffer()
        if held is None or held.size != count * np.dtype(kind).itemsize:
            raise UserError(
                f"data.embeddings={self.folder}: a row's {column} have {held.size if held else 0} bytes, which is not "
                f"what its {RECORD} says: encode the prompts again"
            )
        return torch.from_numpy(np.frombuffer(held, kind).copy())


class _ShardGroups(Groups):
    """Groups that are numbered by arithmetic: ten million rows need no list of them."""

    def __init__(self, record: Encoding, read: Callable[[int, int], pyarrow.Table], limit: int):
        self.record, self.a_shard = record, -(-record.rows // record.group)
        super().__init__((), lambda group: read(*divmod(group, self.a_shard)), limit)

    def __len__(self) -> int:
        return self.record.count

    @property
    def number(self) -> int:
        whole, rest = divmod(self.record.count, self.record.rows)
        return whole * self.a_shard + -(-rest // self.record.group)

    def _place(self, row: int) -> tuple[int, int]:
        shard, within = divmod(row, self.record.rows)
        group, offset = divmod(within, self.record.group)
        return shard * self.a_shard + group, offset


def read_record(folder: str) -> Record:
    """The record of a folder of embeddings. Raises UserError where there is none."""
    try:
        fs, root = file_system(folder)
        if not is_there(fs, f"{root}/{RECORD}"):
            if is_there(fs, f"{root}/{JOB}"):
                raise UserError(
                    f"data.embeddings={folder} is not finished: the same `dipp-ray encode` command goes on with it"
                )
            raise UserError(f"data.embeddings={folder} holds no {RECORD}: give a folder that `dipp-ray encode` wrote")
        return Record.model_validate(json.loads(fs.cat_file(f"{root}/{RECORD}")))
    except UserError:
        raise
    except (ValueError, ValidationError):
        raise UserError(f"data.embeddings={folder}: its {RECORD} is damaged: encode the prompts again") from None
    except Exception as error:  # each store's library raises classes of its own
        raise UserError(f"data.embeddings={in_one_sentence(error, folder)}") from None


def sizes_in(folder: str) -> dict[str, int]:
    """The bytes of each file that now lies in a folder, by name; none where there is no such folder.

    Raises StorageUnavailable where it cannot be asked.
    """
    with asked(folder):
        fs, root = file_system(folder)
        try:
            return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in fs.ls(root, detail=True)}
        except FileNotFoundError:
            return {}
