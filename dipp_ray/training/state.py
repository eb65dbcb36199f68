"""What a run remembers beside its weights: written into a checkpoint's record and read from one here, nowhere else."""

from dataclasses import dataclass, field, replace
from typing import Any

from dipp_ray.errors import UserError


@dataclass(frozen=True)
class RunState:
    """next_step: the number of finished steps. best: (step, held-out reward) so far. falls: held-out rewards below the
    best, in a row. reward_mean, reward_deviation: of the starting generator, where rewards are standardised.
    service: what the reward service said it is, see `ServiceRecord`."""

    next_step: int = 0
    best: tuple[int, float] | None = None
    falls: int = 0
    reward_mean: float | None = None
    reward_deviation: float | None = None
    service: dict | None = field(default=None, hash=False)

    def but(self, **changes: Any) -> "RunState":
        return replace(self, **changes)

    def judged(self, step: int, held_out: float | None) -> "RunState":
        """With the held-out reward of the model after `step` steps; None where there is none. The start, step 0, has
        no checkpoint that could be kept, and is not judged."""
        if held_out is None or step == 0:
            return self
        if self.best is None or held_out > self.best[1]:
            return self.but(best=(step, held_out), falls=0)
        return self.but(falls=self.falls + 1)

    def gives_up(self, patience: int) -> bool:
        """Whether the held-out reward fell so many times in a row; never with a patience of 0."""
        return 0 < patience <= self.falls

    def to_record(self) -> dict[str, Any]:
        """As JSON holds it."""
        standardised = {"reward_mean": self.reward_mean, "reward_deviation": self.reward_deviation}
        return {
            "data_cursor": {"next_step": self.next_step},
            "best": list(self.best) if self.best else None,
            "falls": self.falls,
            "reward": {key: value for key, value in standardised.items() if value is not None},
            "reward_service": self.service,
        }

    @staticmethod
    def from_record(record: dict[str, Any]) -> "RunState":
        """Raises UserError where the record lacks something or holds what is no such thing."""
        try:
            best, reward = record["best"], record["reward"]
            return RunState(
                next_step=int(record["data_cursor"]["next_step"]),
                best=(int(best[0]), float(best[1])) if best else None,
                falls=int(record["falls"]),
                reward_mean=reward.get("reward_mean"),
                reward_deviation=reward.get("reward_deviation"),
                service=record["reward_service"],
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                f"the checkpoint's record of the run cannot be read ({type(error).__name__}: {error}): resume from an "
                "earlier step by removing that step's folder"
            ) from None
