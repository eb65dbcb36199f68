"""The one queue of a reward service: fair between trainers, bounded for each, and batches counted in rows.

Plain bookkeeping without a clock or a loop of its own. Fairness is start-time fair queueing (Goyal et al. 1996) with
equal weights: the next chunk is that of the trainer who got the fewest rows.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from dipp_ray.errors import CallError
from dipp_ray.serving.contract.failures import QueueFull, TrainerFull
from dipp_ray.serving.contract.records import MIB
from dipp_ray.settings import Count, Positive, Section

MOST_AWAY = 1024  # trainers without waiting work whose place is remembered; callers may name themselves at will


class QueueSection(Section):
    rows: Count = Field(1024, description="Rows that one trainer may have waiting; more are answered 429.")
    calls: Count = Field(
        64, description="Calls that one trainer, known by its token, may have open; more are answered 429, unread."
    )
    mib: Positive = Field(1024.0, description="What may wait of all trainers together, MiB.")


def finds_room(size: int, own: int, total: int, most: int) -> bool:
    """Whether a trainer who holds `own` of the `total` bytes in use may have `size` more of at most `most`.

    Nobody may hold more than what stays free (dynamic thresholds, Choudhury and Hahne 1998), so one flood leaves half
    of it to others, two leave a third. Who holds nothing may have all that is free.
    """
    free = most - total - size
    return free >= 0 and (own == 0 or own + size <= free)


@dataclass(eq=False)
class Chunk:
    """Rows of one call that are computed together.

    kind: chunks of one kind may share a batch. expires: on the clock of `take`'s caller. alone: never merged.
    work: what the caller of the queue wants back.
    """

    trainer: str
    kind: tuple
    rows: int
    size: int  # bytes
    expires: float
    alone: bool
    work: Any = field(default=None, repr=False)


class FairQueue:
    """Chunks of several trainers: at most `rows` of one, and `size` bytes of all, shared as `finds_room` says."""

    def __init__(self, rows: int, size: int):
        self._rows, self._size = rows, size
        self._waiting: dict[str, deque[Chunk]] = {}
        self._served: dict[str, float] = {}  # a trainer's place in virtual time, in rows; the lowest is next
        self._clock = 0.0  # the place of the chunk that was served last
        self.bytes = 0

    def __len__(self) -> int:
        """Rows that wait."""
        return sum(self.rows_of(trainer) for trainer in self._waiting)

    def rows_of(self, trainer: str) -> int:
        return sum(chunk.rows for chunk in self._waiting.get(trainer, ()))

    def require_rows(self, trainer: str, rows: int, rows_a_second: float) -> None:
        """Raise TrainerFull where `rows` more would be too many of this trainer's."""
        waiting = self.rows_of(trainer)
        if waiting + rows > self._rows:
            raise TrainerFull(
                f"trainer '{trainer}' has {waiting} rows waiting of at most {self._rows}: send fewer at a time, or "
                "give the service more replicas",
                self._advice(rows_a_second),
            )

    def put(self, chunks: list[Chunk], rows_a_second: float) -> None:
        """Take all chunks of a call, or none: raises QueueFull where a bound would be passed.

        rows_a_second: the speed of late, for the advice when to come again.
        """
        trainer, rows, size = chunks[0].trainer, sum(c.rows for c in chunks), sum(c.size for c in chunks)
        self.require_rows(trainer, rows, rows_a_second)
        if size > self._size:
            raise CallError(f"a call of {size / MIB:.1f} MiB was sent: at most {self._size / MIB:g} MiB may wait")
        own = sum(chunk.size for chunk in self._waiting.get(trainer, ()))
        if not finds_room(size, own, self.bytes, self._size):
            raise QueueFull(
                f"{self.bytes / MIB:.0f} MiB of calls are waiting, {own / MIB:.0f} of them trainer '{trainer}''s: try "
                "again later, or give the service more replicas",
                self._advice(rows_a_second),
            )
        if trainer not in self._waiting:
            self._waiting[trainer] = deque()
            # Who was away has saved nothing up, and who comes back at once does not overtake those who waited.
            self._served[trainer] = max(self._clock, self._served.get(trainer, 0.0))
        self._waiting[trainer].extend(chunks)
        self.bytes += size

    def take(self, most_rows: int, now: float, only_full: bool = False) -> tuple[list[Chunk], list[Chunk]]:
        """(the next batch, chunks whose time was over before it began).

        A batch is of one kind and of at most `most_rows` rows; chunks are never split. only_full: return an empty
        batch, and take nothing, unless more rows of that kind would not fit.
        """
        late = self._drop(lambda chunk: chunk.expires <= now)
        batch = self._choose(most_rows, only_full)
        for chunk in batch:
            self._clock = max(self._clock, self._served[chunk.trainer])
            self._served[chunk.trainer] += chunk.rows
            self._remove(chunk)
        self._forget()
        return batch, late

    def discard(self, chunks: list[Chunk]) -> None:
        """Forget those of `chunks` that still wait: their caller is gone."""
        gone = set(map(id, chunks))
        self._drop(lambda chunk: id(chunk) in gone)

    def _choose(self, most_rows: int, only_full: bool) -> list[Chunk]:
        batch: list[Chunk] = []
        rows, full = 0, False
        depth = dict.fromkeys(self._waiting, 0)  # how many of each trainer's chunks are in the batch already
        served = dict(self._served)
        while depth:
            trainer = min(depth, key=served.__getitem__)  # of equals the one who has waited longest
            chunk = self._waiting[trainer][depth[trainer]]
            same = not batch or (chunk.kind == batch[0].kind and not chunk.alone and not batch[0].alone)
            fits = not batch or rows + chunk.rows <= most_rows
            full = full or (same and not fits)
            if not (same and fits):
                del depth[trainer]  # in order: what comes behind it waits as well
                continue
            batch.append(chunk)
            rows += chunk.rows
            served[trainer] += chunk.rows
            depth[trainer] += 1
            full = full or rows >= most_rows or chunk.alone
            if depth[trainer] == len(self._waiting[trainer]):
                del depth[trainer]
        return batch if full or not only_full else []

    def _forget(self) -> None:
        """Drop the places of those who are away: where nobody waits, behind virtual time, or when they get too many."""
        keep = bool(self._waiting) and len(self._served) - len(self._waiting) <= MOST_AWAY
        self._served = {
            name: place
            for name, place in self._served.items()
            if name in self._waiting or (keep and place > self._clock)
        }

    def _remove(self, chunk: Chunk) -> None:
        waiting = self._waiting[chunk.trainer]
        waiting.remove(chunk)
        self.bytes -= chunk.size
        if not waiting:
            del self._waiting[chunk.trainer]

    def _drop(self, condition) -> list[Chunk]:
        dropped = [chunk for waiting in self._waiting.values() for chunk in waiting if condition(chunk)]
        for chunk in dropped:
            self._remove(chunk)
        return dropped

    def _advice(self, rows_a_second: float) -> float:
        """Seconds until about what waits now is done, a whole number from 1 to 60."""
        return float(min(60, max(1, math.ceil(len(self) / rows_a_second)))) if rows_a_second > 0 else 1.0
