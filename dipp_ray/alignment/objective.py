"""Diff-Instruct++: the gradient that the generator needs back, one tensor of the shape of x_0.

g_i = divergence_i / divisor_i - alpha_rew dr/dx_0,i          L = sum_i <x_0,i , stop_grad(g_i)> / b
"""

from dataclasses import dataclass

from torch import Tensor

from dipp_ray.alignment.divergence import divisor_of, ikl_gradient, score_gap
from dipp_ray.alignment.hyperparameters import Objective
from dipp_ray.diffusion.schedule import per_sample


@dataclass(frozen=True)
class RewardReply:
    """What a reward model says about b samples: the weighted reward, each raw score, and the exact gradient."""

    reward: Tensor  # [b]
    scores: dict[str, Tensor]  # [b] each
    gradient: Tensor | None  # dr/dx_0, of x_0's shape
    finite: Tensor  # [b] bool: reward and gradient are finite


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the roles answered about x_0 [b, ...], by name: psi and ref the other way round would flip g's sign."""

    x0_psi: Tensor  # the score model's prediction of x_0 at the divergence's x_t, of x_0's shape
    x0_ref: Tensor  # the teacher's guided one, at the same x_t
    alpha: Tensor  # [b] in fp64, at that t
    sigma: Tensor
    reward: RewardReply | None  # None: no reward was asked


def divergence_gradient(
    objective: Objective, x0: Tensor, alpha: Tensor, sigma: Tensor, *, x0_psi: Tensor, x0_ref: Tensor
) -> Tensor:
    """The divergence's part of g, [B, ...] in fp64; alpha, sigma [B] belong to the t at which x0_psi, x0_ref are."""
    gradient = ikl_gradient(alpha, sigma, objective.weight, objective.reduction, x0_psi=x0_psi, x0_ref=x0_ref)
    divisor = divisor_of(objective.divisor, x0, x0_ref, objective.divisor_floor)
    return gradient / per_sample(divisor, gradient)


def generator_gradient(divergence: Tensor, reward: Tensor, reward_scale: float) -> Tensor:
    """g [B, ...] in fp64, from the divergence's gradient and dr/dx_0 (zeros where a reward term is dropped)."""
    return divergence - reward_scale * reward.double()


def surrogate(x0: Tensor, gradient: Tensor) -> Tensor:
    """The scalar whose gradient with respect to x0 [B, ...] is gradient / B. Its value means nothing."""
    return (x0 * gradient.to(x0.dtype).detach()).sum() / len(x0)


def feedback(
    objective: Objective, x0: Tensor, answers: Answers, reward_deviation: float
) -> tuple[Tensor, dict[str, float]]:
    """(g [B, ...] in fp64, measurements as means over the batch) from all that the roles answered about x0 [B, ...].

    `reward_deviation` standardises the reward: 1 without. A sample whose reward is not finite keeps its divergence
    and loses its reward term; it is counted, and stays in the divisor B.
    """
    x0 = x0.detach()
    gradient = divergence_gradient(
        objective, x0, answers.alpha, answers.sigma, x0_psi=answers.x0_psi, x0_ref=answers.x0_ref
    )
    measured = {
        "score_gap": score_gap(answers.x0_psi, answers.x0_ref).mean().item(),
        "divergence_norm": gradient.flatten(1).norm(dim=1).mean().item(),
    }
    reward = answers.reward
    if reward is None:
        return gradient, measured
    kept = reward.finite
    measured["reward_dropped"] = (~kept).double().mean().item()  # a share: its mean over micro-batches is the step's
    if kept.any():
        measured["reward"] = reward.reward[kept].double().mean().item()
        measured |= {f"reward/{name}": score[kept].double().mean().item() for name, score in reward.scores.items()}
    if reward.gradient is not None:
        scale = objective.reward_scale / reward_deviation
        reward_gradient = reward.gradient.double().where(per_sample(kept, reward.gradient), 0.0)
        gradient = generator_gradient(gradient, reward_gradient, scale)
        measured["reward_gradient_norm"] = scale * reward_gradient.flatten(1).norm(dim=1).mean().item()
    return gradient, measured
