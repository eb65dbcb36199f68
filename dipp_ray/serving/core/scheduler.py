"""From calls to batches and back: what waits in the fair queue goes to the models in batches of several callers.

A batch goes to every model at once. As many batches are begun as there are replicas, whatever their size, for an idle
replica should not wait; a second one is sent ahead to each only when it is full.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from dipp_ray.rewards.combination import Answer
from dipp_ray.rewards.terms import SumTerm
from dipp_ray.serving.contract.failures import DeadlineError, ModelError
from dipp_ray.serving.contract.records import Space
from dipp_ray.serving.core.queue import Chunk, FairQueue

AHEAD = 2  # batches for each replica: one that is computed, one that is already there
SPEED_MEMORY = 0.8  # weight of the past in the measured speed


@dataclass(frozen=True)
class Call:
    """Rows of one caller: x [B, C, h, w], B prompts; `terms`: the sum that was in force when the call came."""

    x: np.ndarray
    prompts: list[str]
    space: Space
    gradient: bool
    terms: tuple[SumTerm, ...]

    @property
    def kind(self) -> tuple:
        """Calls of one kind can share a batch."""
        return self.space, self.gradient, self.x.dtype.str, self.x.shape[1:], id(self.terms)

    def rows(self, begin: int, end: int) -> "Call":
        return Call(self.x[begin:end], self.prompts[begin:end], self.space, self.gradient, self.terms)


# (term, call, seconds until nobody waits) -> its answer; raises ModelError or DeadlineError.
Ask = Callable[[SumTerm, Call, float], Awaitable[Answer]]
Outcome = Answer | ModelError | DeadlineError


@dataclass
class _Work:
    call: Call
    future: asyncio.Future  # of {model: Outcome}


class Scheduler:
    """slots: replicas that can compute at the same time. Used from one event loop."""

    def __init__(self, ask: Ask, queue: FairQueue, batch_rows: int, deterministic: bool, slots: int):
        self._ask, self.queue, self._batch_rows, self._slots = ask, queue, batch_rows, slots
        self._alone = deterministic
        self._tasks: set[asyncio.Task] = set()
        self._speed = 0.0  # rows a second, of late
        self.began: Callable[[list[Chunk]], None] = lambda batch: None  # told of every batch

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    def require_room(self, trainer: str) -> None:
        """Raise TrainerFull where not one more row of this trainer may wait."""
        self.queue.require_rows(trainer, 1, self._speed)

    async def score(self, call: Call, trainer: str, expires_s: float) -> list[dict[str, Outcome]]:
        """What each model of the call's terms returned, for one chunk of `batch_rows` rows after the other.

        Raises QueueFull at once, DeadlineError where the time was over before the work began.
        """
        expires = time.monotonic() + expires_s
        loop = asyncio.get_running_loop()
        chunks = []
        for begin in range(0, len(call.x), self._batch_rows):
            part = call.rows(begin, begin + self._batch_rows)
            work = _Work(part, loop.create_future())
            size = part.x.nbytes + sum(map(len, part.prompts))
            chunks.append(Chunk(trainer, call.kind, len(part.x), size, expires, self._alone, work))
        self.queue.put(chunks, self._speed)
        self._pump()
        try:
            async with asyncio.timeout(expires_s):
                return await asyncio.gather(*(chunk.work.future for chunk in chunks))
        except TimeoutError:
            raise DeadlineError(f"no answer within the {expires_s:.3g} s that the caller gave") from None
        finally:
            # Also where the caller is gone: what has not begun is not begun.
            self.queue.discard(chunks)
            for chunk in chunks:
                chunk.work.future.cancel()

    def _pump(self) -> None:
        """Begin what can be begun."""
        while self.in_flight < AHEAD * self._slots:
            ahead = self.in_flight >= self._slots
            batch, late = self.queue.take(self._batch_rows, time.monotonic(), only_full=ahead)
            for chunk in late:
                _finish(chunk, DeadlineError("the deadline passed while the call was waiting"))
            if not batch:
                return
            self.began(batch)
            # In a context of its own: Serve cancels what a cancelled call has begun, and a batch is of many callers.
            task = asyncio.get_running_loop().create_task(self._compute(batch), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            for chunk in batch:
                chunk.work.future.add_done_callback(lambda _, batch=batch, task=task: _cancel_unwanted(batch, task))

    def _ended(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        self._pump()
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # a bug: to the loop's handler; its callers were told

    async def _compute(self, batch: list[Chunk]) -> None:
        start = time.monotonic()
        try:
            terms = batch[0].work.call.terms
            outcomes = await asyncio.gather(*(self._outcomes(term, batch) for term in terms))
            for index, chunk in enumerate(batch):
                by_model = {term.name: of_model[index] for term, of_model in zip(terms, outcomes, strict=True)}
                _finish(chunk, by_model)
        except asyncio.CancelledError:  # by all callers, or by the replica itself
            for chunk in batch:
                _finish(chunk, ModelError("batch", "its replica cancelled the work", "lost"))
            raise
        except Exception as error:
            for chunk in batch:
                _finish(chunk, error)
            raise
        rows, seconds = sum(chunk.rows for chunk in batch), max(time.monotonic() - start, 1e-3)
        speed = rows / seconds * min(self.in_flight, self._slots)
        self._speed = SPEED_MEMORY * self._speed + (1 - SPEED_MEMORY) * speed if self._speed else speed

    async def _outcomes(self, term: SumTerm, batch: list[Chunk]) -> list[Outcome]:
        """One model's outcome for each chunk. What fails together is tried apart: a bad call fails alone."""
        try:
            answer = await self._ask(term, _merged(batch), max(chunk.expires for chunk in batch) - time.monotonic())
        except (ModelError, DeadlineError) as error:
            if len(batch) == 1 or isinstance(error, DeadlineError):
                return [error] * len(batch)
            return [await self._alone_again(term, chunk) for chunk in batch]
        bounds = np.cumsum([chunk.rows for chunk in batch])[:-1]
        scores = np.split(answer.score, bounds)
        slopes = np.split(answer.gradient, bounds) if answer.gradient is not None else [None] * len(batch)
        return [Answer(score, slope) for score, slope in zip(scores, slopes, strict=True)]

    async def _alone_again(self, term: SumTerm, chunk: Chunk) -> Outcome:
        if chunk.work.future.done():
            return DeadlineError("its caller is gone")
        return (await self._outcomes(term, [chunk]))[0]


def _merged(batch: list[Chunk]) -> Call:
    calls = [chunk.work.call for chunk in batch]
    if len(calls) == 1:
        return calls[0]
    x = np.concatenate([call.x for call in calls])
    first = calls[0]
    return Call(x, [text for call in calls for text in call.prompts], first.space, first.gradient, first.terms)


def _finish(chunk: Chunk, result) -> None:
    future = chunk.work.future
    if future.done():  # its caller is gone
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _cancel_unwanted(batch: list[Chunk], task: asyncio.Task) -> None:
    if all(chunk.work.future.cancelled() for chunk in batch):
        task.cancel()
