"""What every way to a reward service has in common: how one attempt travels, and how it fails."""

from typing import Protocol

import numpy as np
from pydantic import ValidationError

from dipp_ray.errors import CallError, UserError
from dipp_ray.serving.contract.calls import Question
from dipp_ray.serving.contract.failures import DeadlineError, Draining, ModelError, QueueFull
from dipp_ray.serving.contract.records import HealthRecord, ServiceRecord

FAULT_ATTEMPTS = 3  # where a model raised: once may be chance


class TransportError(Exception):
    """The call did not reach a model, or its answer got lost: the same call may succeed elsewhere.

    retry_after_s: the shortest pause that the service asks for, 0 for none. most_attempts: how often it is tried in
    all, None for as often as the deadline allows. answered: whether the service answered at all.
    """

    def __init__(
        self,
        message: str,
        retry_after_s: float = 0.0,
        most_attempts: int | None = None,
        answered: bool = False,
    ):
        super().__init__(message)
        self.retry_after_s, self.most_attempts, self.answered = retry_after_s, most_attempts, answered


class Transport(Protocol):
    """How one attempt travels. Raises TransportError for what a retry may cure, CallError for a refused call."""

    async def score(
        self, x: np.ndarray, prompts: list[str], question: Question, trainer: str, expires_s: float
    ) -> dict: ...

    async def describe(self) -> ServiceRecord: ...

    async def require_health(self) -> None:
        """Raises TransportError, with what is wrong, where a required model cannot score."""

    async def close(self) -> None: ...


def as_client_error(raised: BaseException) -> Exception | None:
    """What an error of the service is to its caller: CallError or TransportError, and None for what is a bug."""
    match raised:
        case ModelError(kind="refused") | CallError():
            return CallError(str(raised))
        case ModelError():
            return TransportError(str(raised), most_attempts=FAULT_ATTEMPTS if raised.kind == "failed" else None)
        case QueueFull() | Draining() | DeadlineError():
            pause = raised.retry_after_s if isinstance(raised, QueueFull) else 0.0
            return TransportError(f"{type(raised).__name__}: {raised}", pause)
    return None


def another_version(service: str, error: ValidationError, setting: str) -> UserError:
    return UserError(
        f"{service} is no reward service of this version ({error.error_count()} differences in what it says it is): "
        f"correct {setting}, or bring both to one version"
    )


def ills(health: HealthRecord) -> str:
    """What is wrong with a service that is not well."""
    wrong = [f"reward '{name}': {said}" for name, said in health.models.items() if said != "ok"]
    return "; ".join(wrong) or "it is being stopped"
