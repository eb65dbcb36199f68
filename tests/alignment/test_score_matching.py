"""Score matching: lambda's formulas, and that its minimiser is the true score."""

import pytest
import torch
from closed_forms import FRAMES, Gaussian, cubature, eye, output
from torch.autograd.functional import hessian

from dipp_ray.alignment.questions import score_loss
from dipp_ray.alignment.score_matching import score_matching
from dipp_ray.diffusion.parameterisation import from_x0, score_of_x0
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.diffusion.schedule import linear_vp

EMBEDS = PromptEmbeds(torch.zeros(1, 1, 1))
LAMBDAS = {"epsilon": lambda a, s: s**2, "x0": lambda a, s: s**4 / a**2}


@pytest.mark.parametrize("weight", LAMBDAS)
def test_lambda_times_the_squared_difference_of_scores(weight):
    schedule, t = linear_vp(1e-4, 2e-2, 1000), torch.tensor([1, 300, 979])
    alpha, sigma = schedule.alpha_sigma(t)
    generator = torch.Generator().manual_seed(0)
    x0, eps, x0_psi = torch.randn(3, len(t), 2, 3, 3, dtype=torch.float64, generator=generator)
    x_t = Diffusion(schedule, "epsilon").noised(x0, t, eps)
    eps_psi = from_x0("epsilon", x0_psi, x_t, alpha, sigma)
    # grad log p(x_t | x_0) is the score that belongs to x_0 itself.
    difference = score_of_x0(x0_psi, x_t, alpha, sigma) - score_of_x0(x0, x_t, alpha, sigma)
    expected = LAMBDAS[weight](alpha, sigma) * difference.square().flatten(1).mean(1)
    loss = score_matching(eps_psi, eps, alpha, sigma, weight)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    mse = {"epsilon": (eps_psi - eps), "x0": (x0_psi - x0)}[weight].square().flatten(1).mean(1)
    torch.testing.assert_close(loss, mse, rtol=1e-9, atol=0)


def test_an_unknown_lambda_is_refused():
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="cubed"):
        score_matching(one, one, one, one, "cubed")


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("weight", LAMBDAS)
@pytest.mark.parametrize("time", [0, 40, -1])
def test_minimiser_is_the_true_score_of_a_gaussian(frame, weight, time):
    """Least squares over all affine eps-networks, exactly: eps = sigma V^-1 (x_t - alpha mu)."""
    mean = torch.tensor([0.9, -0.4], dtype=torch.float64)
    S = torch.tensor([[0.7, 0.3], [-0.2, 0.5]], dtype=torch.float64)
    diffusion = frame.diffusion
    z, eps, t = cubature(frame.t[[time]], 2)
    x0 = mean[:, None, None] + (S @ z.flatten(1).T).T[:, :, None, None]
    alpha, sigma = diffusion.schedule.alpha_sigma(t)

    def loss(parameters):
        slope, shift = parameters[:4].view(2, 2), parameters[4:]

        def network(x_t, t, embeds):
            x = x_t.flatten(1)
            x0_psi = (x - sigma[:, None] * (x @ slope.T + shift)) / alpha[:, None]
            return output(diffusion.kind, x0_psi, x, alpha, sigma).view_as(x_t)

        return score_loss(network, diffusion, x0, EMBEDS, t, eps, weight)

    start = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(start), start)
    minimiser = -torch.linalg.solve(hessian(loss, start.detach()), gradient)  # exact: the loss is quadratic
    a, s = alpha[0], sigma[0]
    true = Gaussian(mean, S @ S.T)
    slope = s * torch.linalg.inv(a**2 * true.covariance + s**2 * eye(2))
    torch.testing.assert_close(minimiser[:4].view(2, 2), slope, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(minimiser[4:], -slope @ (a * mean), rtol=1e-8, atol=1e-8)


def test_the_loss_is_a_mean_over_samples_and_elements():
    """A network that answers eps + 1 has loss 1 whatever the batch and shape."""
    diffusion = Diffusion(linear_vp(1e-4, 2e-2, 1000), "epsilon")
    for shape in ((1, 1, 2, 2), (5, 3, 4, 4)):
        x0, eps = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        t = torch.full((shape[0],), 500)
        loss = score_loss(lambda x_t, t, embeds, eps=eps: eps + 1, diffusion, x0, EMBEDS, t, eps, "epsilon")
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1, abs=1e-6)


def test_the_network_is_asked_at_x_t_with_its_time_and_prompt():
    diffusion, t = Diffusion(linear_vp(1e-4, 2e-2, 1000), "epsilon"), torch.tensor([10, 700])
    x0, eps = torch.randn(2, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    asked = []

    def network(*question):
        asked.append(question)
        return question[0]

    score_loss(network, diffusion, x0, EMBEDS, t, eps, "epsilon")
    ((x_t, time, embeds),) = asked
    assert torch.equal(x_t, diffusion.noised(x0, t, eps)) and torch.equal(time, t) and embeds is EMBEDS
