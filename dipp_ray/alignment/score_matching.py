"""Denoising score matching: what the online score model s_psi is trained on."""

from torch import Tensor

from dipp_ray.alignment.hyperparameters import ScoreWeight


def score_matching(eps_psi: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, weight: ScoreWeight) -> Tensor:
    """lambda(t) || s_psi(x_t) - grad log p(x_t | x_0) ||^2, mean over elements, [B] in fp64.

    With s_psi = -eps_psi / sigma and grad log p(x_t | x_0) = -eps / sigma the bracket is (eps - eps_psi) / sigma.
    `epsilon`: lambda = sigma^2, the eps-MSE.  `x0`: lambda = sigma^4 / alpha^2, the MSE of the prediction of x_0.
    """
    error = (eps_psi.double() - eps.double()).square().flatten(1).mean(1)
    match weight:
        case "epsilon":
            return error
        case "x0":
            return (sigma / alpha) ** 2 * error
    raise ValueError(f"unknown weight of score matching {weight}")
