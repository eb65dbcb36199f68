"""Held-out rewards of the model at different steps, always on the same noises and prompts, and what they say."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dipp_ray.reporting.differences import Difference, paired


@dataclass(frozen=True)
class Look:
    """A held-out reward after `step` steps: its mean, and the score of each of the fixed samples (fp32), which a
    checkpoint from before they were kept does not have."""

    step: int
    mean: float
    scores: tuple[float, ...] = ()

    @staticmethod
    def of(step: int, scores: np.ndarray) -> "Look | None":
        """Scores [N], or None where one of them is not finite: then nothing is better or worse."""
        mean = float(scores.mean())
        if not math.isfinite(mean):
            return None
        return Look(
            step, mean, tuple(float(str(np.float32(score))) for score in scores)
        )  # the shortest that reads back

    @staticmethod
    def from_record(record: dict[str, Any] | None) -> "Look | None":
        if record is None:
            return None
        return Look(int(record["step"]), float(record["mean"]), tuple(float(score) for score in record["scores"]))

    def since(self, before: "Look | None") -> Difference | None:
        """This minus `before`, sample by sample; None where they cannot be paired."""
        return paired(before.scores, self.scores) if before is not None and before.scores else None

    def fell_since(self, best: "Look") -> bool:
        """Whether this is worse beyond noise. Where they cannot be paired, any lower mean is."""
        difference = self.since(best)
        return self.mean < best.mean if difference is None else difference.falls


@dataclass(frozen=True)
class History:
    """Of one held-out model: the start's rewards (step 0), and the best ones so far, which may be the start's."""

    start: Look | None = None
    best: Look | None = None

    def after(self, look: Look) -> "History":
        start = look if look.step == 0 else self.start
        best = look if self.best is None or look.mean > self.best.mean else self.best
        return History(start, best)

    def changes(self, name: str, look: Look) -> dict[str, float]:
        """What the metrics record about `look`: its difference from the start and from the best before it, each with
        half the width of its 95 % interval."""
        values: dict[str, float] = {}
        if since := look.since(self.start):
            values |= {f"from_start/{name}": since.mean, f"from_start_within/{name}": since.within}
        if self.best is not None and (since := look.since(self.best)):
            values |= {f"from_best/{name}": since.mean, f"from_best_within/{name}": since.within}
            values[f"from_best_step/{name}"] = self.best.step
        return values

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_record(record: dict[str, Any]) -> "History":
        return History(Look.from_record(record["start"]), Look.from_record(record["best"]))
