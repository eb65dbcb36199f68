"""What a call to reward models is, whoever carries it: no torch here, for callers and the ingress do without it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from dipp_ray.errors import CallError
from dipp_ray.rewards.combination import trained
from dipp_ray.rewards.terms import SumTerm
from dipp_ray.serving.contract.records import MOST_AXES, Space

HEALTH_S = 3.0  # so long a service asks each model for a sign of life; callers wait longer for the service's own


@dataclass(frozen=True)
class Question:
    """What is asked about rows that are sent: in which space they are, whether the gradient of the weighted reward is
    wanted too, and the scores of models that are held out of the sum."""

    space: Space
    gradient: bool
    held_out: bool


def validate_call(
    x,
    prompts: list[str],
    space: Space,
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
    require_shape(x.shape, space, latent_channels)
    if len(prompts) != len(x):
        raise CallError(f"{len(x)} {space} but {len(prompts)} prompts")
    if gradient and not trained(terms):
        raise CallError("a gradient was asked for, but every reward term is held out")
    without = [term.name for term in trained(terms) if term.name in flat] if gradient else []
    if without:
        raise CallError(f"reward '{without[0]}' has no gradient: hold it out, or ask for scores only")


def require_shape(shape: Sequence[int], space: Space, latent_channels: int | None) -> None:
    """Raise CallError where rows of this shape are no images or latents. latent_channels: None for any number."""
    channels = 3 if space == "images" else latent_channels
    if len(shape) != 4 or 0 in shape or channels not in (None, shape[1]):
        raise CallError(
            f"{space} of shape {list(shape)[:MOST_AXES]} were sent: expected [B, {channels or 'C'}, height, width]"
        )


def as_fp32(x: np.ndarray) -> np.ndarray:
    """What was sent as the models take it: pixels in uint8 become [0, 1]."""
    return x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32, copy=False)


def finite_rows(values: np.ndarray) -> np.ndarray:
    """[B, ...] -> [B]: where all of a row is finite."""
    return np.isfinite(values).reshape(len(values), -1).all(axis=1)
