"""The sizes that a run's elastic roles may have together: pure, from the configuration alone."""

from dataclasses import dataclass

from dipp_ray.config import RunConfig, allowed_group_sizes
from dipp_ray.role_settings import RoleSection


@dataclass(frozen=True)
class Sizes:
    """Ranks of both groups, and teachers of the pool, which is empty where the score model's ranks answer for it."""

    generator: int
    score: int
    teacher: int

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


def _group_sizes(config: RunConfig, role: RoleSection) -> list[int]:
    return [size for size in allowed_group_sizes(config.data.micro_batches) if role.fewest <= size <= role.most]
