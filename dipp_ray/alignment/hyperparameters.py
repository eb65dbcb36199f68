"""The hyper-parameters of Diff-Instruct++, each with its default, unit, bounds and meaning; no default anywhere else.

The configuration takes these records up as its sections `objective`, `generator_optim` and `score_optim`, and checks
there what a person wrote. Nothing here needs torch, so that a configuration is read without it.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

Weight = Literal["unit", "sigma_squared", "x0_difference"]
Divisor = Literal["none", "abs_mean"]
Reduction = Literal["sum", "mean"]
ScoreWeight = Literal["epsilon", "x0"]

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Timesteps = tuple[Annotated[int, Ge(0)], Annotated[int, Gt(0)]]


def _means(text: str) -> dict[str, str]:
    return {"description": text}  # the word under which pydantic and a JSON schema know a setting's meaning


@dataclass(frozen=True)
class Times:
    """How t is distributed on its range: tau = t / T, of T steps of the teacher's schedule."""

    distribution: Literal["uniform", "logit_normal"] = field(
        default="uniform", metadata=_means("Of tau: uniform, or logit(tau) normal (rectified flows' training).")
    )
    shift: Positive = field(
        default=1.0,
        metadata=_means("s: tau becomes s tau / (1 + (s - 1) tau); above 1 towards noise (3 is common), 1: nothing."),
    )
    mean: float = field(default=0.0, metadata=_means("Of logit_normal, before the shift."))
    std: Positive = field(default=1.0, metadata=_means("Of logit_normal, the standard deviation."))
    continuous: bool = field(
        default=False, metadata=_means("Any time of a flow; false: whole steps, as a schedule of betas has alone.")
    )


@dataclass(frozen=True)
class Objective:
    """What the generator and the score model are trained on, and in which order."""

    reward_scale: NotNegative = field(default=0.0, metadata=_means("alpha_rew; 0 is plain Diff-Instruct distillation."))
    guidance_scale: NotNegative = field(default=1.5, metadata=_means("alpha_cfg of the teacher; 1 is no guidance."))
    weight: Weight = field(default="x0_difference", metadata=_means("w(t) of the integral KL."))
    divisor: Divisor = field(default="abs_mean", metadata=_means("Per-sample divisor of the divergence."))
    divisor_floor: NotNegative = field(
        default=1e-3, metadata=_means("Smallest divisor, in units of x0; 0 is none, as in DMD2.")
    )
    reduction: Reduction = field(default="sum", metadata=_means("Over the elements of one sample."))
    score_updates: Count = field(default=1, metadata=_means("K_TA: score updates for each generator update."))
    score_weight: ScoreWeight = field(default="epsilon", metadata=_means("lambda(t) of score matching."))
    score_timesteps: Timesteps = field(
        default=(0, 1000), metadata=_means("Range [low, high) of t in steps of the teacher's schedule, score matching.")
    )
    divergence_timesteps: Timesteps = field(
        default=(20, 980), metadata=_means("Range [low, high) of t in steps of the teacher's schedule, divergence.")
    )
    score_times: Times = field(default=Times(), metadata=_means("pi(t) of score matching on its range."))
    divergence_times: Times = field(default=Times(), metadata=_means("pi(t) of the divergence on its range."))
    order: Literal["strict", "overlapped"] = field(
        default="strict", metadata=_means("psi before theta, or DMD2's order.")
    )


@dataclass(frozen=True)
class Optimiser:
    """AdamW of one trained network, with clipping and warm-up."""

    lr: Positive = field(metadata=_means("Learning rate of AdamW."))
    betas: tuple[Decay, Decay] = field(default=(0.0, 0.999), metadata=_means("AdamW's decay rates."))
    eps: Positive = field(default=1e-8, metadata=_means("AdamW's epsilon."))
    weight_decay: NotNegative = field(
        default=0.0, metadata=_means("AdamW's decay of weights, decoupled from the gradient.")
    )
    grad_clip: NotNegative = field(default=10.0, metadata=_means("Largest norm of the gradient; 0 is no clipping."))
    warmup_steps: Annotated[int, Ge(0)] = field(default=0, metadata=_means("Updates of linear learning-rate warm-up."))
