"""Diff-Instruct++: the gradient that the generator needs back, one tensor of the shape of x_0.

g_i = divergence_i / divisor_i - alpha_rew dr/dx_0,i          L = sum_i <x_0,i , stop_grad(g_i)> / b
"""

from torch import Tensor

from dipp_ray.alignment.divergence import divisor_of, ikl_gradient
from dipp_ray.config import ObjectiveSection
from dipp_ray.diffusion.schedule import per_sample


def divergence_gradient(
    objective: ObjectiveSection, x0: Tensor, x0_psi: Tensor, x0_ref: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """The divergence's part of g, [B, ...] in fp64; alpha, sigma [B] belong to the t at which x0_psi, x0_ref are."""
    gradient = ikl_gradient(x0_psi, x0_ref, alpha, sigma, objective.weight, objective.reduction)
    divisor = divisor_of(objective.divisor, x0, x0_ref, objective.divisor_floor)
    return gradient / per_sample(divisor, gradient)


def generator_gradient(divergence: Tensor, reward: Tensor, reward_scale: float) -> Tensor:
    """g [B, ...] in fp64, from the divergence's gradient and dr/dx_0 (zeros where a reward term is dropped)."""
    return divergence - reward_scale * reward.double()


def surrogate(x0: Tensor, gradient: Tensor) -> Tensor:
    """The scalar whose gradient with respect to x0 [B, ...] is gradient / B. Its value means nothing."""
    return (x0 * gradient.to(x0.dtype).detach()).sum() / len(x0)
