"""Prompts, chosen by key."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow

from dipp_ray.config import RunConfig
from dipp_ray.data.embeddings import Embeddings
from dipp_ray.data.order import Order
from dipp_ray.data.prompt_files import open_texts, texts_table
from dipp_ray.data.row_groups import Groups
from dipp_ray.diffusion.noise import Draws


class Prompts:
    """N prompts by row, of which a bounded part is in memory. order: None: with replacement."""

    def __init__(self, groups: Groups, order: Order | None = None):
        self.groups, self.order = groups, order or Order(groups.counts)

    @staticmethod
    def listed(texts: Sequence[str]) -> "Prompts":
        """Of texts in memory."""
        return Prompts(Groups([len(texts)], lambda _: texts_table(texts)))

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[str]:
        for table in self.groups.each():
            yield from table.column(0).to_pylist()

    def rows(self, draws: Draws) -> list[int]:
        """The rows of one micro-batch: each sample's is a function of its key alone."""
        return self.order.rows(draws)

    def rows_ahead(self, draws: Draws) -> list[int]:
        """The rows of the micro-batch that is likely to be asked for next by whoever asked for this one."""
        return self.order.rows(self.order.following(draws))

    def of(self, draws: Draws) -> list[str]:
        """The prompts of one micro-batch. The following one is read ahead."""
        found = self.at(self.rows(draws))
        self.groups.ahead(self.rows_ahead(draws))
        return found

    def at(self, rows: Sequence[int]) -> list[str]:
        return self.groups.at(rows, lambda table, row: table.column(0)[row].as_py())

    def spread(self, count: int) -> list[int]:
        """`count` rows spread evenly, for grids and evaluation."""
        return [i * len(self) // count % len(self) for i in range(count)]

    def first(self, count: int) -> list[str]:
        """The prompts of these rows."""
        return self.at(self.spread(count))

    def digest(self) -> str:
        """SHA-256, in hex, of all texts in their order, whatever files and groups they lie in."""
        texts, lengths = hashlib.sha256(), hashlib.sha256()
        for table in self.groups.each():
            for chunk in table.column(0).cast(pyarrow.large_string()).chunks:
                _, offsets, content = chunk.buffers()
                ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
                lengths.update(np.diff(ends).astype("<i8").tobytes())
                if content is not None:
                    texts.update(memoryview(content)[ends[0] : ends[-1]])
        return hashlib.sha256(lengths.digest() + texts.digest()).hexdigest()


def read_prompts(paths: str | Sequence[str], column: str, key: str = "data.prompts") -> Prompts:
    """The prompts of the files that the setting `key` names. Raises UserError as `open_texts` does."""
    return Prompts(open_texts(paths, column, key))


def prompts_of(config: RunConfig) -> Prompts:
    """The prompts that a run trains on, in its order: those of its embeddings where it has such.

    Raises UserError as `open_texts` and `Embeddings` do.
    """
    data = config.data
    if data.embeddings is not None:
        embeddings = Embeddings(data.embeddings)
        groups, counts = embeddings.texts(), embeddings.record.groups
    else:
        groups = open_texts(data.prompts, data.column, "data.prompts")
        counts = list(groups.counts)
    return Prompts(groups, Order(counts, data.order, data.batch_size, config.objective.score_updates))
