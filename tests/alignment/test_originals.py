"""The gradient at x0 against the losses of DMD2 and SiD-LSG, written anew from their formulas, in fp64."""

import pytest
import torch

from dipp_ray.alignment.hyperparameters import Objective
from dipp_ray.alignment.objective import Answers, feedback, surrogate

SHAPE = (3, 4, 5, 6)


def tensors(distance=1.0):
    """x0, x0_psi, x0_ref and alpha, sigma of three samples; x0 and x0_ref lie about `distance` apart."""
    generator = torch.Generator().manual_seed(0)
    x0, x0_psi, x0_ref = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.2, 0.7, 0.95], dtype=torch.float64)
    return x0, x0_psi, x0 + distance * x0_ref, (1 - sigma**2).sqrt(), sigma


def dmd2(x0, x0_psi, x0_ref):
    """grad = (p_real - p_fake) / mean |p_real|, p = x0 - prediction; loss = mse(x0, x0 - grad) / 2 (Yin et al.)."""
    x = x0.clone().requires_grad_()
    with torch.no_grad():
        p_real, p_fake = x - x0_ref, x - x0_psi
        grad = (p_real - p_fake) / p_real.abs().mean(dim=(1, 2, 3), keepdim=True)
    loss = 0.5 * torch.nn.functional.mse_loss(x, (x - grad).detach(), reduction="mean")
    return torch.autograd.grad(loss, x)[0]


def sid_lsg(x0, x0_psi, x0_ref, floor):
    """(y_real - y_fake) ((y_real - x) - a (y_real - y_fake)) / mean |x - y_real|, networks detached, summed over a
    sample and divided by the batch (Zhou et al. 2024)."""
    x = x0.clone().requires_grad_()
    with torch.no_grad():
        weight = (x - x0_ref).abs().mean(dim=(1, 2, 3), keepdim=True).clip(min=floor)
    loss = (x0_ref - x0_psi) * ((x0_ref - x) - 1.0 * (x0_ref - x0_psi)) / weight
    return torch.autograd.grad(loss.sum() / len(x), x)[0]


def ours(x0, x0_psi, x0_ref, alpha, sigma, **settings):
    objective = Objective(weight="x0_difference", divisor="abs_mean", **settings)
    answers = Answers(x0_psi=x0_psi, x0_ref=x0_ref, alpha=alpha, sigma=sigma, reward=None)
    gradient, _ = feedback(objective, x0, answers, 1.0)
    x = x0.clone().requires_grad_()
    return torch.autograd.grad(surrogate(x, gradient), x)[0]


@pytest.mark.parametrize("distance", [1.0, 1e-4, 1e-7])
def test_dmd2(distance):
    """Which has no floor of the divisor."""
    given = tensors(distance)
    expected = dmd2(*given[:3])
    found = ours(*given, reduction="mean", divisor_floor=0.0)
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("distance", [1.0, 1e-4, 1e-7])
def test_sid_lsg(distance):
    """Whose floor is 1e-5."""
    given = tensors(distance)
    expected = sid_lsg(*given[:3], floor=1e-5)
    found = ours(*given, reduction="sum", divisor_floor=1e-5)
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_the_floor_matters_where_x0_is_close_to_the_teachers():
    given = tensors(1e-4)
    assert not torch.allclose(ours(*given, divisor_floor=1e-3), ours(*given, divisor_floor=0.0), rtol=0.5)
