"""What a call to reward models is, whoever carries it: no torch here, for callers and the ingress do without it."""

from collections.abc import Collection, Sequence

from dipp_ray.errors import CallError
from dipp_ray.rewards.combination import trained
from dipp_ray.rewards.terms import SumTerm

HEALTH_S = 3.0  # so long a service asks each model for a sign of life; callers wait longer for the service's own


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
