"""Which rows of the prompts a micro-batch has: a function of the run's key, the step and the sample's index alone.

    replacement     each sample's row is drawn from all of them
    epoch           every row once an epoch: the sample's position, (step K_TA + repeat) batch + index, counts through
                    the epochs. In each the groups are permuted, laid end to end, and cut into windows of WINDOW rows,
                    within which the rows are permuted.

So neither the number of ranks nor a restart changes them, and an epoch reads each group once, or once more where a
window ends within it.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Literal

import numpy as np

from dipp_ray.diffusion.noise import Draws, key_of

WINDOW = 2**16  # rows
OrderName = Literal["replacement", "epoch"]


class Order:
    """counts: the rows of each group. batch_size: samples of one repeat; repeats: K_TA, those of one step."""

    def __init__(
        self,
        counts: Sequence[int],
        name: OrderName = "replacement",
        batch_size: int = 1,
        repeats: int = 1,
        window: int = WINDOW,
    ):
        self.counts, self.name, self.batch_size, self.repeats, self.window = counts, name, batch_size, repeats, window
        self.starts = [0, *accumulate(counts)]
        self._groups = lru_cache(2)(self._groups_of)  # the two epochs that a batch may touch
        self._within = lru_cache(4)(self._within_window)

    def rows(self, draws: Draws) -> list[int]:
        """The rows of a micro-batch. Steps below zero, outside training's own, are drawn with replacement always."""
        total = self.starts[-1]
        if self.name == "replacement" or draws.step < 0:
            return draws.integers("prompt", 0, total).tolist()
        first = (draws.step * self.repeats + draws.repeat) * self.batch_size
        return [self._row(draws.seed, *divmod(first + index, total)) for index in draws.indices]

    def following(self, draws: Draws) -> Draws:
        """The micro-batch that comes at this one's place in the next repeat, be it of the next step."""
        step, repeat = draws.step, draws.repeat + 1
        if step >= 0 and repeat == self.repeats:
            step, repeat = step + 1, 0
        return Draws(draws.seed, step, repeat, draws.indices)

    def _row(self, seed: int, epoch: int, position: int) -> int:
        window, within = divmod(position, self.window)
        place = window * self.window + int(self._within(seed, epoch, window)[within])
        groups, ends = self._groups(seed, epoch)
        i = int(np.searchsorted(ends, place, side="right"))
        return self.starts[groups[i] + 1] - (int(ends[i]) - place)

    def _groups_of(self, seed: int, epoch: int) -> tuple[list[int], np.ndarray]:
        """The groups in the order of their keys, and where each ends when they lie end to end."""
        groups = sorted(range(len(self.counts)), key=lambda group: key_of(seed, epoch, 0, group, "prompt_group"))
        return groups, np.cumsum([self.counts[group] for group in groups])

    def _within_window(self, seed: int, epoch: int, window: int) -> np.ndarray:
        """A permutation of a window's rows: in the order of the raw words of Philox under the window's key."""
        size = min(self.window, self.starts[-1] - window * self.window)
        words = np.random.Philox(key=key_of(seed, epoch, 0, window, "prompt_window")).random_raw(size)
        return np.argsort(words, kind="stable")
