"""Where a schedule ends in pure noise, alpha = 0: what has a limit there is its limit, to the end of the arithmetic."""

import pytest
import torch

from dipp_ray.alignment.divergence import ikl_gradient
from dipp_ray.alignment.questions import score_loss
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.schedule import VPSchedule

GENERATOR = torch.Generator().manual_seed(0)
X0, EPS, OUTPUT, OTHER = torch.randn(4, 2, 3, 4, 4, generator=GENERATOR)
KINDS = ["sample", "v_prediction", "flow_prediction"]


def ending_in(alpha: float) -> VPSchedule:
    return VPSchedule(torch.tensor([0.9, alpha**2], dtype=torch.float64))


def loss_of(kind, alpha, weight, output):
    network = lambda x_t, t, embeds: output  # noqa: E731
    return score_loss(network, Diffusion(ending_in(alpha), kind), X0.double(), None, torch.tensor([0, 1]), EPS, weight)


@pytest.mark.parametrize("weight", ["epsilon", "x0"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_score_loss_and_its_gradient_at_the_end_are_limits(kind, weight):
    losses, gradients = [], []
    for alpha in (1e-5, 0.0):
        output = OUTPUT.double().requires_grad_()
        loss = loss_of(kind, alpha, weight, output)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(output.grad)
    assert gradients[1].isfinite().all()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def test_an_eps_network_has_a_loss_of_eps_there():
    assert loss_of("epsilon", 0.0, "epsilon", OUTPUT).isfinite()


@pytest.mark.parametrize("weight", ["unit", "sigma_squared", "x0_difference"])
def test_the_divergence_at_the_end_is_its_limit(weight):
    def gradient(alpha):
        a, s = ending_in(alpha).alpha_sigma(torch.tensor([1, 1]))
        return ikl_gradient(a, s, weight, "sum", x0_psi=OUTPUT, x0_ref=OTHER)

    torch.testing.assert_close(gradient(0.0), gradient(1e-6), rtol=1e-9, atol=1e-9)
    assert (gradient(0.0).abs().max() > 0) == (weight == "x0_difference")
