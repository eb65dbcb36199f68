"""How many faults in a row a run recovers from. Pure."""

from collections import Counter
from collections.abc import Hashable


class Attempts:
    """allowed: faults in a row, with no step finished that was not finished before, and times that memory ran out at
    the same sizes, whatever was finished between. Preemptions, which say nothing about the run, are counted apart."""

    def __init__(self, allowed: int):
        self.allowed, self.in_a_row, self.furthest = allowed, 0, -1
        self.failures = self.preemptions = 0  # over the whole run
        self.starved: Counter[Hashable] = Counter()  # by sizes

    def finished(self, done: int) -> None:
        """`done` steps are finished."""
        if done > self.furthest:
            self.furthest, self.in_a_row = done, 0

    def preempted(self) -> None:
        """A node was lost, or is about to be."""
        self.preemptions += 1

    def again(self, starved_at: Hashable | None) -> bool:
        """Whether to go on after one more fault. starved_at: the sizes at which memory ran out, None where it did
        not."""
        self.failures += 1
        self.in_a_row += 1
        if starved_at is not None:
            self.starved[starved_at] += 1
        return self.in_a_row <= self.allowed and self.starved[starved_at] <= self.allowed

    def __str__(self) -> str:
        counted = f"{self.in_a_row} of {self.allowed} in a row"
        return f"{counted}; {self.failures} faults and {self.preemptions} preemptions so far"
