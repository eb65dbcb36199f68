"""The sizes that a run's elastic roles may have together: pure, from the configuration alone."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dipp_ray.config import RunConfig, allowed_group_sizes
from dipp_ray.role_settings import RoleSection


@dataclass(frozen=True)
class Sizes:
    """Ranks of both groups, and teachers of the pool, which is empty where the score model's ranks answer for it."""

    generator: int
    score: int
    teacher: int

    @staticmethod
    def of(requests: Iterable[Any]) -> "Sizes":
        """Those of a plan's requests."""
        roles = Counter(request.role for request in requests)
        return Sizes(roles["generator"], roles["score"], roles["teacher"])

    @property
    def ranks(self) -> int:
        return self.generator + self.score

    def __str__(self) -> str:
        return f"{self.generator} generator and {self.score} score model ranks"


def allowed_sizes(config: RunConfig) -> list[Sizes]:
    """All that the run may have, the best first: by ranks, the larger generator group, then teachers."""
    roles = config.roles
    teachers = [0] if config.teacher_in_score else list(range(roles.teacher.fewest, roles.teacher.most + 1))
    found = [
        Sizes(generator, score, teacher)
        for generator in _group_sizes(config, roles.generator)
        for score in _group_sizes(config, roles.score)
        for teacher in teachers
    ]
    return sorted(found, key=lambda sizes: (-sizes.ranks, -sizes.generator, -sizes.teacher))


def next_larger(config: RunConfig, sizes: Sizes) -> Sizes | None:
    """The smallest that has more ranks, and no group with fewer; None where there is none."""
    larger = [
        other
        for other in allowed_sizes(config)
        if other.ranks > sizes.ranks and other.generator >= sizes.generator and other.score >= sizes.score
    ]
    return min(larger, key=lambda other: other.ranks, default=None)


def _group_sizes(config: RunConfig, role: RoleSection) -> list[int]:
    return [size for size in allowed_group_sizes(config.data.micro_batches) if role.fewest <= size <= role.most]
