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


class NoGradientError(CallError):
    """A gradient was asked for, and the score of `model` has none. place: file and line of its code, in brackets."""

    reason = (
        "it has no gradient, for its score does not depend on the images by torch operations (numpy, PIL, .detach(), "
        "torch.no_grad or an integer cast cut the graph): write it in torch, hold it out, or ask for scores only"
    )

    def __init__(self, model: str, place: str = ""):
        super().__init__(model, place)
        self.model, self.place = model, place

    def __str__(self) -> str:
        return f"reward '{self.model}': {self.reason}{self.place}"


class ModelError(Exception):
    """A model gave no answer: it `refused` what was sent, `failed` at it, or its replicas were `lost`. place: where in
    its code, in brackets; for those inside."""

    def __init__(self, model: str, reason: str, kind: Literal["refused", "failed", "lost"], place: str = ""):
        super().__init__(model, reason, kind, place)
        self.model, self.reason, self.kind, self.place = model, reason, kind, place

    def __str__(self) -> str:
        return f"{self.named}: {self.reason}{self.place}"

    @property
    def public(self) -> str:
        """For callers from outside, who learn of no file: of what the model raised, the kind alone, and no place."""
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
