"""What a run remembers beside its weights: written into a checkpoint's record and read from one here, nowhere else."""

from dataclasses import dataclass, field, replace
from typing import Any

from dipp_ray.errors import UserError
from dipp_ray.training.looks import History, Look
from dipp_ray.training.shared_service import judge_of


@dataclass(frozen=True)
class RunState:
    """next_step: the number of finished steps. held_out: start and best of each held-out model, by name. falls: looks
    in a row at which the judge's reward was below its best by more than noise. reward_mean, reward_deviation: of the
    starting generator, where rewards are standardised. service: what the reward service said it is, see
    `ServiceRecord`."""

    next_step: int = 0
    held_out: dict[str, History] = field(default_factory=dict, hash=False)
    falls: int = 0
    reward_mean: float | None = None
    reward_deviation: float | None = None
    service: dict | None = field(default=None, hash=False)

    def but(self, **changes: Any) -> "RunState":
        return replace(self, **changes)

    @property
    def best(self) -> Look | None:
        """The best so far by the judge; of step 0, which has no checkpoint, where none was better than the start."""
        history = self.held_out.get(judge_of(self.service) or "")
        return history.best if history else None

    def judged(self, looks: dict[str, Look]) -> "RunState":
        """With a look at the held-out rewards, by the models' names; those that are not finite are left out."""
        held_out = self.held_out | {
            name: self.held_out.get(name, History()).after(look) for name, look in looks.items()
        }
        look, best = looks.get(judge_of(self.service) or ""), self.best
        if look is None:
            return self.but(held_out=held_out)
        fell = best is not None and look.fell_since(best)
        return self.but(held_out=held_out, falls=self.falls + 1 if fell else 0)

    def changes(self, looks: dict[str, Look]) -> dict[str, float]:
        """Each look's differences from the start and from the best before it, as the metrics record them."""
        values: dict[str, float] = {}
        for name, look in looks.items():
            values |= self.held_out.get(name, History()).changes(name, look)
        return values

    def gives_up(self, patience: int) -> bool:
        """Whether the held-out reward lay below its best so many times in a row; never with a patience of 0."""
        return 0 < patience <= self.falls

    def in_words(self) -> str:
        """How the judge's reward stands to its best."""
        best = self.best
        since = (
            f"its best, {best.mean:.6g} at {'the start' if best.step == 0 else f'step {best.step}'}," if best else "it"
        )
        return f"the held-out reward was below {since} by more than noise in {self.falls} looks in a row"

    def to_record(self) -> dict[str, Any]:
        """As JSON holds it."""
        standardised = {"reward_mean": self.reward_mean, "reward_deviation": self.reward_deviation}
        return {
            "data_cursor": {"next_step": self.next_step},
            "best": [self.best.step, self.best.mean] if self.best else None,
            "held_out": {name: history.to_record() for name, history in self.held_out.items()},
            "falls": self.falls,
            "reward": {key: value for key, value in standardised.items() if value is not None},
            "reward_service": self.service,
        }

    @staticmethod
    def from_record(record: dict[str, Any]) -> "RunState":
        """Raises UserError where the record lacks something or holds what is no such thing."""
        try:
            reward = record["reward"]
            return RunState(
                next_step=int(record["data_cursor"]["next_step"]),
                held_out=_held_out(record),
                falls=int(record["falls"]),
                reward_mean=reward.get("reward_mean"),
                reward_deviation=reward.get("reward_deviation"),
                service=record["reward_service"],
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise UserError(
                f"the checkpoint's record of the run cannot be read ({type(error).__name__}: {error}): resume from an "
                "earlier step by removing that step's folder"
            ) from None


def _held_out(record: dict[str, Any]) -> dict[str, History]:
    """The looks that a record keeps; one from before it kept any has step and mean of the judge's best alone."""
    best, judge = record["best"], judge_of(record["reward_service"])
    alone = Look(int(best[0]), float(best[1])) if best else None
    if "held_out" in record:
        return {name: History.from_record(history) for name, history in record["held_out"].items()}
    return {judge: History(None, alone)} if judge and alone else {}
