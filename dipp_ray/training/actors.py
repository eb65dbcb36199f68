"""The actors of a run as the executor calls them: counted, waited for, and known by name when one of them is lost."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from dipp_ray.roles.waiting import is_consequence, lost_actor, value_of
from dipp_ray.training.faults import ActorLost
from dipp_ray.training.pool import Pool
from dipp_ray.training.tasks import Role


class RayActors:
    """handles: the actors of each role but the teachers, by index; a group's are its ranks."""

    def __init__(self, handles: Mapping[Role, Mapping[int, Any]], pool: Pool):
        self.pool = pool
        self.handles = {**handles, "teacher": pool.members}
        self.names: dict[str, tuple[Role, int]] = {}  # also of those that are gone
        self._name()

    def _name(self) -> None:
        for role, found in self.handles.items():
            self.names |= {handle._actor_id.hex(): (role, index) for index, handle in found.items()}

    def follow(self, say: Callable[[str], None]) -> None:
        self.pool.follow(say)
        self._name()

    def of(self, role: Role, index: int):
        return self.handles[role][index]

    def count(self, role: Role) -> int:
        return len(self.handles[role])

    def indices(self, role: Role) -> list[int]:
        return sorted(self.handles[role])

    def wait(self, reports: Sequence, timeout_s: float) -> list:
        reports = list(reports)
        ended, rest = ray.wait(reports, num_returns=1, timeout=timeout_s)
        if ended and rest:
            ended += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return ended

    def result(self, report):
        try:
            return value_of(report)
        except RayActorError as error:
            actor_id, reason = lost_actor(error)
            role, index = self.names.get(actor_id, (None, 0))
            raise ActorLost(role, index, reason) from None

    def heartbeat(self, role: Role, index: int):
        return self.of(role, index).alive.remote()

    def restart(self, role: Role, index: int) -> bool:
        actor = self.of(role, index)
        if ray._private.state.actors(actor._actor_id.hex())["State"] != "ALIVE":  # Ray has no public way to ask
            return False
        ray.kill(actor, no_restart=False)
        return True

    def is_consequence(self, error: Exception) -> bool:
        return is_consequence(error)
