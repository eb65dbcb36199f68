"""From calls to batches and back: what waits in the fair queue goes to the models in batches of several callers.

A batch goes to every model at once, decoded before where a decoder is shared. As many batches are begun as there are
replicas, whatever their size, for an idle replica should not wait; a second one is sent ahead to each only when it is
full.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np

from dipp_ray.rewards.combination import Answer
from dipp_ray.rewards.terms import SumTerm
from dipp_ray.serving.contract.failures import DeadlineError, ModelError
from dipp_ray.serving.core.decoding import Decoders, images_of, pulled_back, summed
from dipp_ray.serving.core.queue import Chunk, FairQueue
from dipp_ray.serving.core.work import Call, Outcome, Worked

AHEAD = 2  # batches for each replica: one that is computed, one that is already there
SPEED_MEMORY = 0.8  # weight of the past in the measured speed


# (term, call, seconds until nobody waits) -> its answer; raises ModelError or DeadlineError.
Ask = Callable[[SumTerm, Call, float], Awaitable[Answer]]


@dataclass
class _Work:
    call: Call
    future: asyncio.Future  # of Worked


class Scheduler:
    """slots: replicas that can compute at the same time. decoders: of calls with a `vae`. Used from one event loop."""

    def __init__(
        self,
        ask: Ask,
        queue: FairQueue,
        batch_rows: int,
        deterministic: bool,
        slots: int,
        decoders: Decoders | None = None,
    ):
        self._ask, self.queue, self._batch_rows, self._slots = ask, queue, batch_rows, slots
        self._decoders = decoders
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

    async def score(self, call: Call, trainer: str, expires_s: float) -> list[Worked]:
        """What the models of the call's terms returned, for one chunk of `batch_rows` rows after the other.

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
            for chunk, worked in zip(batch, await self._worked(batch), strict=True):
                _finish(chunk, worked)
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

    async def _worked(self, batch: list[Chunk]) -> list[Worked]:
        calls = [chunk.work.call for chunk in batch]
        whole, left = _merged(calls), _left(batch)
        shared = self._decoders if whole.vae is not None else None
        if shared is None:
            return [Worked(outcomes) for outcomes in await self._of_all(batch, calls, whole)]
        try:
            images = await shared.decode(whole, left())
            seen = [images_of(call, part) for call, part in zip(calls, np.split(images, _bounds(batch)), strict=True)]
            found = await self._of_all(batch, seen, images_of(whole, images))
            if not whole.gradient:
                return [Worked(outcomes) for outcomes in found]
            # In a thread: the pixels' gradients of a batch are megabytes, and callers are answered meanwhile.
            chunks = await asyncio.to_thread(lambda: [summed(whole.terms, outcomes) for outcomes in found])
            return await pulled_back(shared, calls, chunks, left())
        except (ModelError, DeadlineError) as error:  # of the decoder: no model has an answer without it
            return [Worked({term.name: error for term in whole.terms}) for _ in batch]

    async def _of_all(self, batch: list[Chunk], calls: list[Call], whole: Call) -> list[dict[str, Outcome]]:
        """What each model says of each chunk. calls: the chunks as the models get them; whole: all of them as one."""
        outcomes = await asyncio.gather(*(self._outcomes(term, batch, calls, whole) for term in whole.terms))
        return [
            {term.name: of_model[index] for term, of_model in zip(whole.terms, outcomes, strict=True)}
            for index in range(len(batch))
        ]

    async def _outcomes(self, term: SumTerm, batch: list[Chunk], calls: list[Call], whole: Call) -> list[Outcome]:
        """One model's outcome for each chunk. What fails together is tried apart: a bad call fails alone."""
        try:
            answer = await self._ask(term, whole, _left(batch)())
        except (ModelError, DeadlineError) as error:
            if len(batch) == 1 or isinstance(error, DeadlineError):
                return [error] * len(batch)
            return [await self._alone_again(term, *one) for one in zip(batch, calls, strict=True)]
        scores = np.split(answer.score, _bounds(batch))
        slopes = np.split(answer.gradient, _bounds(batch)) if answer.gradient is not None else [None] * len(batch)
        return [Answer(score, slope) for score, slope in zip(scores, slopes, strict=True)]

    async def _alone_again(self, term: SumTerm, chunk: Chunk, call: Call) -> Outcome:
        if chunk.work.future.done():
            return DeadlineError("its caller is gone")
        return (await self._outcomes(term, [chunk], [call], call))[0]


def _merged(calls: list[Call]) -> Call:
    if len(calls) == 1:
        return calls[0]
    x = np.concatenate([call.x for call in calls])
    return replace(calls[0], x=x, prompts=[text for call in calls for text in call.prompts])


def _bounds(batch: list[Chunk]) -> np.ndarray:
    """Where each chunk's rows end, but the last one's."""
    return np.cumsum([chunk.rows for chunk in batch])[:-1]


def _left(batch: list[Chunk]) -> Callable[[], float]:
    """Seconds until nobody waits for any of it."""
    until = max(chunk.expires for chunk in batch)
    return lambda: until - time.monotonic()


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
