"""What a call to reward models is, whoever carries it: no torch here, for callers and the ingress do without it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dipp_ray.errors import CallError
from dipp_ray.rewards.combination import trained
from dipp_ray.rewards.terms import SumTerm
from dipp_ray.serving.contract.records import MOST_AXES, Space, VaeRecord

HEALTH_S = 3.0  # so long a service asks each model for a sign of life; callers wait longer for the service's own


@dataclass(frozen=True)
class Question:
    """What is asked about rows that are sent: in which space they are, whether the gradient of the weighted reward is
    wanted too, and the scores of models that are held out of the sum.

    vae: which of the service's VAEs made the latents; None for its only one.
    """

    space: Space
    gradient: bool
    held_out: bool
    vae: str | None = None


def vae_of(question: Question, vaes: Mapping[str, VaeRecord]) -> str | None:
    """Which of a service's named VAEs decodes what is asked about; None for images, and where none has a name.

    Raises CallError where the question names none of them, or does not say which of several.
    """
    given, names = question.vae, ", ".join(vaes)
    if question.space != "latents":
        if given is not None:
            raise CallError(f"vae is '{given}', but {question.space} were sent: leave it out, or send latents")
        return None
    if given is None:
        if len(vaes) > 1:
            raise CallError(f"the service has the VAEs {names}: say by vae which of them made these latents")
        return next(iter(vaes), None)
    if not vaes:
        raise CallError(f"vae is '{given}', but no VAE of this service has a name: leave it out")
    if given not in vaes:
        raise CallError(f"vae is '{given}', but the service has {names}: name the one that made these latents")
    return given


def validate_call(
    x,
    prompts: list[str],
    space: Space,
    gradient: bool,
    latent_channels: int | None,
    terms: Sequence[SumTerm],
    flat: Collection[str],
    vae: str | None = None,
) -> None:
    """Raise CallError, before any work, if (x, prompts) is no call that the models of `terms` can answer.

    x: a tensor or an array. latent_channels: None where there is no decoder. flat: models without a gradient. vae: the
    decoder's name, if it has one.
    """
    if space not in ("latents", "images"):
        raise CallError(f"space is '{space}': give latents or images")
    if space == "latents" and latent_channels is None:
        raise CallError("latents were sent, but the service has no VAE: send images, or set its vae")
    require_shape(x.shape, space, latent_channels, vae)
    if len(prompts) != len(x):
        raise CallError(f"{len(x)} {space} but {len(prompts)} prompts")
    if gradient and not trained(terms):
        raise CallError("a gradient was asked for, but every reward term is held out")
    without = [term.name for term in trained(terms) if term.name in flat] if gradient else []
    if without:
        raise CallError(f"reward '{without[0]}' has no gradient: hold it out, or ask for scores only")


def require_shape(shape: Sequence[int], space: Space, latent_channels: int | None, vae: str | None = None) -> None:
    """Raise CallError where rows of this shape are no images or latents. latent_channels: None for any number."""
    channels = 3 if space == "images" else latent_channels
    if len(shape) != 4 or 0 in shape or channels not in (None, shape[1]):
        of = f" of VAE '{vae}'" if vae is not None else ""
        raise CallError(
            f"{space} of shape {list(shape)[:MOST_AXES]} were sent: expected [B, {channels or 'C'}, height, width]{of}"
        )


def as_fp32(x: np.ndarray) -> np.ndarray:
    """What was sent as the models take it: pixels in uint8 become [0, 1]."""
    return x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32, copy=False)


def finite_rows(values: np.ndarray) -> np.ndarray:
    """[B, ...] -> [B]: where all of a row is finite."""
    return np.isfinite(values).reshape(len(values), -1).all(axis=1)
