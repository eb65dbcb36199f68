"""Signs of life: each actor of a run is asked for one every second, and one that gives none for too long hangs."""

from collections.abc import Callable
from typing import Any

from dipp_ray.training.actor_protocol import Actors
from dipp_ray.training.tasks import Role

ROLES: tuple[Role, ...] = ("text", "generator", "score", "teacher", "reward")
EVERY_S = 1.0
Who = tuple[Role, int]


class Pulse:
    """deadline_s: from when an actor was asked until its silence means that it hangs."""

    def __init__(self, actors: Actors, deadline_s: float, clock: Callable[[], float]):
        self.actors, self.deadline_s, self.clock = actors, deadline_s, clock
        self.beats: dict[Any, tuple[Who, float]] = {}  # report -> (who, when it was asked)
        self.asked = clock()

    def ask(self, can_beat: Callable[[Role, int], bool]) -> None:
        """Ask those that have answered before and can answer now."""
        now = self.clock()
        if now - self.asked < EVERY_S:
            return
        self.asked = now
        waiting = {who for who, _ in self.beats.values()}
        for role in ROLES:
            for index in self.actors.indices(role):
                if (role, index) not in waiting and can_beat(role, index):
                    self.beats[self.actors.heartbeat(role, index)] = (role, index), now

    def answered(self, report: Any) -> Who:
        """Who it is that has answered, or is lost: `Actors.result` says."""
        return self.beats.pop(report)[0]

    def silent(self) -> list[Who]:
        """Who has been silent for too long; they are given as long again."""
        now = self.clock()
        found = {report: who for report, (who, asked) in self.beats.items() if now - asked >= self.deadline_s}
        for report, who in found.items():
            self.beats[report] = who, now
        return list(found.values())
