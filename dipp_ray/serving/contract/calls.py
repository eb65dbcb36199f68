"""What a call to reward models is, whoever carries it: no torch here, for callers and the ingress do without it."""

from collections.abc import Collection, Sequence
from typing import Literal

from dipp_ray.errors import CallError
from dipp_ray.rewards.combination import trained
from dipp_ray.rewards.terms import SumTerm
from dipp_ray.serving.deploy.config import LimitsSection

Space = Literal["latents", "images"]
HEALTH_S = 3.0  # so long a service asks each model for a sign of life; callers wait longer for the service's own


class DeadlineError(Exception):
    """Nobody waits for the answer any more: the work was not begun, or its answer came too late."""


class ModelError(Exception):
    """A model gave no answer: it `refused` what was sent, `failed` at it, or its replicas were `lost`."""

    def __init__(self, model: str, reason: str, kind: Literal["refused", "failed", "lost"]):
        super().__init__(model, reason, kind)
        self.model, self.reason, self.kind = model, reason, kind

    def __str__(self) -> str:
        return f"reward '{self.model}': {self.reason}"

    @property
    def public(self) -> str:
        """For callers from outside: of what the model raised, the kind alone, for its text may name files."""
        reason = self.reason.partition(":")[0] if self.kind == "failed" else self.reason
        return f"reward '{self.model}': {reason}"


class Draining(Exception):
    """The service is being stopped, and takes no new calls."""


def validate_call(
    x,
    prompts: list[str],
    space: str,
    gradient: bool,
    latent_channels: int | None,
    terms: Sequence[SumTerm],
    flat: Collection[str],
) -> None:
    """Raise CallError, before any work, if (x, prompts) is no call that the models of `terms` can answer.

    x: a tensor or an array. latent_channels: None where there is no decoder. flat: models without a gradient.
    """
    if space not in ("latents", "images"):
        raise CallError(f"space is '{space}': give latents or images")
    if space == "latents" and latent_channels is None:
        raise CallError("latents were sent, but the service has no VAE: send images, or set its vae")
    channels = 3 if space == "images" else latent_channels
    if x.ndim != 4 or 0 in x.shape or x.shape[1] != channels:
        raise CallError(f"{space} of shape {list(x.shape)} were sent: expected [B, {channels}, height, width]")
    if len(prompts) != len(x):
        raise CallError(f"{len(x)} {space} but {len(prompts)} prompts")
    if gradient and not trained(terms):
        raise CallError("a gradient was asked for, but every reward term is held out")
    without = [term.name for term in trained(terms) if term.name in flat] if gradient else []
    if without:
        raise CallError(f"reward '{without[0]}' has no gradient: hold it out, or ask for scores only")


def check_limits(shape: tuple[int, ...], prompts: list[str], space: Space, limits: LimitsSection) -> None:
    """Raise CallError where rows, sides or prompts are beyond the limits."""
    if shape[0] > limits.rows:
        raise CallError(f"{shape[0]} rows were sent: at most {limits.rows} in one call")
    side = limits.image_side if space == "images" else limits.latent_side
    if max(shape[2:]) > side:
        raise CallError(f"{space} of {shape[2]} x {shape[3]} were sent: at most {side} a side")
    if max(shape[2:]) > limits.aspect * min(shape[2:]):
        raise CallError(
            f"{space} of {shape[2]} x {shape[3]} were sent: one side is at most {limits.aspect:g} times the other"
        )
    if (longest := max(map(len, prompts))) > limits.prompt_chars:
        raise CallError(f"a prompt of {longest} characters was sent: at most {limits.prompt_chars}")
