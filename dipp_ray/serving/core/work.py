"""What the scheduler works on: a call, and what came of a chunk of it."""

from dataclasses import dataclass, field, replace

import numpy as np

from dipp_ray.rewards.combination import Answer
from dipp_ray.rewards.terms import SumTerm
from dipp_ray.serving.contract.failures import DeadlineError, ModelError
from dipp_ray.serving.contract.records import Space

Outcome = Answer | ModelError | DeadlineError


@dataclass(frozen=True)
class Call:
    """Rows of one caller: x [B, C, h, w], B prompts; `terms`: the sum that was in force when the call came. vae: who
    decodes x for all models; None where they get it as it is."""

    x: np.ndarray
    prompts: list[str]
    space: Space
    gradient: bool
    terms: tuple[SumTerm, ...]
    vae: str | None = None

    @property
    def kind(self) -> tuple:
        """Calls of one kind can share a batch."""
        return self.space, self.vae, self.gradient, self.x.dtype.str, self.x.shape[1:], id(self.terms)

    def rows(self, begin: int, end: int) -> "Call":
        return replace(self, x=self.x[begin:end], prompts=self.prompts[begin:end])


@dataclass(frozen=True)
class Worked:
    """What came of a chunk. outcomes: of each model. gradient: where the decoder was shared, that of the sum of the
    models `summed` by the latents; the answers have none then."""

    outcomes: dict[str, Outcome]
    gradient: np.ndarray | None = None
    summed: frozenset[str] = field(default_factory=frozenset)
