"""How a call ends without a reply: what service and callers tell each other, by whichever way it travels."""

from typing import Literal

from dipp_ray.errors import CallError


class WireError(CallError):
    """A body that is no call. The message says what is wrong with it."""


class QueueFull(Exception):
    """There is no room for the call now. `retry_after_s`: when it is worth trying again."""

    def __init__(self, message: str, retry_after_s: float):
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.args[0]


class TrainerFull(QueueFull):
    """The bound of this trainer alone: others are not touched."""


class DeadlineError(Exception):
    """Nobody waits for the answer any more: the work was not begun, or its answer came too late."""


class ModelError(Exception):
    """A model gave no answer: it `refused` what was sent, `failed` at it, or its replicas were `lost`."""

    def __init__(self, model: str, reason: str, kind: Literal["refused", "failed", "lost"]):
        super().__init__(model, reason, kind)
        self.model, self.reason, self.kind = model, reason, kind

    def __str__(self) -> str:
        return f"{self.named}: {self.reason}"

    @property
    def public(self) -> str:
        """For callers from outside: of what the model raised, the kind alone, for its text may name files."""
        reason = self.reason.partition(":")[0] if self.kind == "failed" else self.reason
        return f"{self.named}: {reason}"

    @property
    def named(self) -> str:
        return f"reward '{self.model}'"


class DecoderError(ModelError):
    """The same of a VAE, named `model` here."""

    @property
    def named(self) -> str:
        return f"VAE '{self.model}'"


class Draining(Exception):
    """The service is being stopped, and takes no new calls."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
