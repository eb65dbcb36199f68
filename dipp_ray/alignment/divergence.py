"""The gradient of the integral KL between the generator's and the teacher's diffusions, with respect to x_0.

    grad_{x_0} IKL = E_t[ w(t) alpha_t (s_psi(x_t) - s_ref(x_t)) ],    s_psi - s_ref = (alpha/sigma^2)(x0_psi - x0_ref)

(Diff-Instruct, Luo et al. 2023, Theorem 3.1; the conversion follows from s = (alpha x0 - x_t) / sigma^2.)
Weight, divisor and reduction are three separate settings, for the reward scale has no meaning without them. Under
"Loss" the README lists them; this module is what they do.
"""

from torch import Tensor

from dipp_ray.alignment.hyperparameters import Divisor, Reduction, Weight
from dipp_ray.diffusion.schedule import per_sample


def weight_of_time(weight: Weight, alpha: Tensor, sigma: Tensor) -> Tensor:
    """w(t) [B]: 1; sigma^2; or sigma^2 / alpha^2, with which the term is x0_psi - x0_ref (Diff-Instruct's)."""
    match weight:
        case "unit":
            return alpha.new_ones(alpha.shape)
        case "sigma_squared":
            return sigma**2
        case "x0_difference":
            return (sigma / alpha) ** 2
    raise ValueError(f"unknown weight {weight}")


def ikl_gradient(
    alpha: Tensor, sigma: Tensor, weight: Weight, reduction: Reduction, *, x0_psi: Tensor, x0_ref: Tensor
) -> Tensor:
    """w(t) alpha_t (s_psi - s_ref), [B, ...] in fp64; with `mean` divided by the number of elements of a sample.

    At alpha = 0, the end of a schedule of zero terminal SNR, it is the limit: of `x0_difference` x0_psi - x0_ref,
    of the others 0.
    """
    factor = weight_of_time(weight, alpha, sigma) * (alpha / sigma) ** 2
    if weight == "x0_difference":
        factor = factor.where(alpha > 0, 1.0)
    if reduction == "mean":
        factor = factor / x0_psi[0].numel()
    return per_sample(factor, x0_psi) * (x0_psi.double() - x0_ref.double())


def divisor_of(divisor: Divisor, x0: Tensor, x0_ref: Tensor, floor: float) -> Tensor:
    """[B] in fp64. `abs_mean`: mean |x0 - x0_ref| over a sample's elements, at least `floor` (DMD2, SiD-LSG)."""
    distance = (x0.double() - x0_ref.double()).abs().flatten(1).mean(1)
    match divisor:
        case "none":
            return distance.new_ones(len(distance))
        case "abs_mean":
            return distance.clamp_min(floor)
    raise ValueError(f"unknown divisor {divisor}")


def score_gap(x0_psi: Tensor, x0_ref: Tensor) -> Tensor:
    """RMS of x0_psi - x0_ref over a sample's elements, [B]: what is logged in place of a divergence's value."""
    return (x0_psi.double() - x0_ref.double()).square().flatten(1).mean(1).sqrt()
