"""Rows by number from files whose groups of rows are read by range: a bounded memory of them, and reading ahead.

A group is what is read at once: a row group of a parquet file, or a file that is held whole.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from typing import Any, TypeVar

import pyarrow
import pyarrow.parquet

from dipp_ray.data.files import by_range
from dipp_ray.errors import UserError
from dipp_ray.storage.remote import in_one_sentence

REMEMBERED = 256 * 2**20  # bytes of groups that are held
READERS = 4  # groups that are read side by side

Value = TypeVar("Value")


class ParquetRows:
    """The groups of one parquet file; `counts` are their rows. Raises UserError where it cannot be read as one."""

    def __init__(self, fs: Any, file: str, shown: str, columns: Sequence[str]):
        self.fs, self.file, self.shown, self.columns = fs, file, shown, list(columns)
        with self._opened() as opened:
            self.metadata = opened.metadata
            self.schema = opened.schema_arrow
        self.counts = [self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups)]

    def read(self, group: int) -> pyarrow.Table:
        """The columns of one group: their bytes are read and no others."""
        with self._opened(self.metadata) as opened:
            try:
                return opened.read_row_group(group, columns=self.columns, use_threads=False)
            except Exception as error:
                raise self._unreadable(error) from None

    def _opened(self, metadata: Any = None) -> Any:
        try:
            source = by_range(self.fs, self.file)
            return pyarrow.parquet.ParquetFile(source, metadata=metadata, pre_buffer=True)
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"prompt file {self.shown} is not parquet ({error})") from None
        except Exception as error:  # each store's library raises classes of its own
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(f"prompt file {in_one_sentence(error, self.shown)}")


class Groups:
    """All rows, numbered through. counts: the rows of each group. read: a group by its number, from any thread.

    `limit` bytes of groups are held, those longest unused forgotten first, beside the few that are being read.
    """

    def __init__(self, counts: Iterable[int], read: Callable[[int], pyarrow.Table], limit: int = REMEMBERED):
        self.counts = tuple(counts)
        self.ends = list(accumulate(self.counts))
        self.read, self.limit = read, limit
        self._held: OrderedDict[int, pyarrow.Table] = OrderedDict()
        self._bytes = self._largest = 0
        self._coming: dict[int, Future] = {}
        self._pool: ThreadPoolExecutor | None = None  # made when it is needed first

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @property
    def number(self) -> int:
        """Of groups."""
        return len(self.counts)

    def group_of(self, row: int) -> tuple[int, int]:
        """(group, row within it)."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self._place(row)

    def _place(self, row: int) -> tuple[int, int]:
        group = bisect_right(self.ends, row)
        return group, row - (self.ends[group] - self.counts[group])

    def at(self, rows: Sequence[int], take: Callable[[pyarrow.Table, int], Value]) -> list[Value]:
        """What `take(group, row within it)` makes of each row, in order; it must not hold on to the group."""
        places = [self.group_of(row) for row in rows]
        wanted = list(dict.fromkeys(group for group, _ in places))
        found: dict[tuple[int, int], Value] = {}
        for i, group in enumerate(wanted):
            for soon in wanted[i : i + READERS]:
                self._begin(soon)
            table = self._group(group)
            found |= {place: take(table, place[1]) for place in places if place[0] == group and place not in found}
        return [found[place] for place in places]

    def ahead(self, rows: Sequence[int]) -> None:
        """Begin to read the groups of these rows, as far as there is room to hold them until they are asked for."""
        self._collect()
        wanted = dict.fromkeys(self.group_of(row)[0] for row in rows)
        if self._largest * len(wanted) <= self.limit // 2:
            for group in wanted:
                self._begin(group)

    def each(self) -> Iterator[pyarrow.Table]:
        """Every group in order, the next ones being read meanwhile; none is remembered."""
        for group in range(self.number):
            for soon in range(group, min(group + READERS, self.number)):
                self._begin(soon)
            yield self._held[group] if group in self._held else self._coming.pop(group).result()

    def _begin(self, group: int) -> None:
        if group in self._held or group in self._coming:
            return
        self._pool = self._pool or ThreadPoolExecutor(READERS, thread_name_prefix="rows")
        self._coming[group] = self._pool.submit(self.read, group)

    def _group(self, group: int) -> pyarrow.Table:
        if group not in self._held:
            self._hold(group, self._coming.pop(group).result())
        self._held.move_to_end(group)
        return self._held[group]

    def _hold(self, group: int, table: pyarrow.Table) -> None:
        self._held[group] = table
        self._bytes += table.nbytes
        self._largest = max(self._largest, table.nbytes)
        while self._bytes > self.limit and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes

    def _collect(self) -> None:
        """Take in what was read ahead. What could not be read is asked for again, and raises, when it is needed."""
        for group in [group for group, future in self._coming.items() if future.done()]:
            future = self._coming.pop(group)
            if future.exception() is None:
                self._hold(group, future.result())
