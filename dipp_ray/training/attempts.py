"""How many faults in a row a run recovers from. Pure."""


class Attempts:
    """allowed: faults in a row, with no step finished that was not finished before. Lost nodes are counted apart."""

    def __init__(self, allowed: int):
        self.allowed, self.in_a_row, self.furthest = allowed, 0, -1
        self.failures = self.preemptions = 0  # over the whole run

    def finished(self, done: int) -> None:
        """`done` steps are finished."""
        if done > self.furthest:
            self.furthest, self.in_a_row = done, 0

    def again(self, lost_node: bool) -> bool:
        """Whether to go on after one more fault. A node that is lost says nothing about the run."""
        if lost_node:
            self.preemptions += 1
            return True
        self.failures += 1
        self.in_a_row += 1
        return self.in_a_row <= self.allowed

    def __str__(self) -> str:
        counted = f"{self.in_a_row} of {self.allowed} in a row"
        return f"{counted}; {self.failures} faults and {self.preemptions} lost nodes so far"
