"""What the executor asks of actors, Ray's or simulated ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dipp_ray.training.tasks import Key, Role, Task


@dataclass(frozen=True)
class TaskResult:
    """What a role gives back: `reference` travels on, `report` is small and tells the executor how it went."""

    reference: Any | None
    report: Any


class Actors(Protocol):
    """The actors of a session. References are opaque and hashable."""

    def count(self, role: Role) -> int: ...

    def indices(self, role: Role) -> Sequence[int]:
        """Those of a role that can be asked now; of a group, all its ranks from 0 on."""
        ...

    def follow(self, say: Callable[[str], None]) -> None:
        """Take notice of who has come and gone among stateless actors; called all the time."""
        ...

    def wait(self, reports: Sequence, timeout_s: float) -> list:
        """Those that have ended; as soon as there is one, or after `timeout_s` none."""
        ...

    def result(self, report) -> Any:
        """What an ended report holds. Raises ActorLost, or what the task raised."""
        ...

    def heartbeat(self, role: Role, index: int):
        """A report that ends at once while the actor's process runs, whatever it is busy with, unless a call before it
        still waits for its arguments."""
        ...

    def restart(self, role: Role, index: int) -> bool:
        """End the process of a stateless actor, so that another takes its place; False where that is under way."""
        ...

    def is_consequence(self, error: Exception) -> bool:
        """Whether a task ends so because of what happened to another process."""
        ...


Send = Callable[[Task, int, dict[Key, TaskResult]], TaskResult]  # (task, index of the actor, answers to what it needs)
