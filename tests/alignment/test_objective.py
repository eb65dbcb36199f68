"""The divisor, the surrogate and what the generator gets back, against their own formulas."""

import pytest
import torch
from closed_forms import FRAMES, WEIGHTS, Gaussian, cubature, ikl

from dipp_ray.alignment.divergence import divisor_of, ikl_gradient
from dipp_ray.alignment.hyperparameters import Objective, Optimiser
from dipp_ray.alignment.objective import (
    Answers,
    RewardReply,
    divergence_gradient,
    feedback,
    generator_gradient,
    surrogate,
)
from dipp_ray.alignment.updates import ema_update, learning_rate

X0, X0_PSI, X0_REF, REWARD = torch.randn(4, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
ALPHA, SIGMA = torch.tensor([[0.9, 0.6, 0.2], [0.4, 0.8, 0.98]], dtype=torch.float64)


def by_hand(weight, reduction, divisor, floor):
    """The divergence's gradient sample by sample, in fp64."""
    rows = []
    for x0, x0_psi, x0_ref, a, s in zip(X0.double(), X0_PSI.double(), X0_REF.double(), ALPHA, SIGMA, strict=True):
        g = WEIGHTS[weight](a, s) * a * (a / s**2) * (x0_psi - x0_ref)
        g = g / 32 if reduction == "mean" else g
        rows.append(g / max(floor, float((x0 - x0_ref).abs().sum()) / 32) if divisor == "abs_mean" else g)
    return torch.stack(rows)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("divisor", ["none", "abs_mean"])
@pytest.mark.parametrize("floor", [1e-3, 1.1])
def test_divergence_gradient_by_hand(weight, reduction, divisor, floor):
    settings = Objective(weight=weight, reduction=reduction, divisor=divisor, divisor_floor=floor)
    gradient = divergence_gradient(settings, X0, ALPHA, SIGMA, x0_psi=X0_PSI, x0_ref=X0_REF)
    torch.testing.assert_close(gradient, by_hand(weight, reduction, divisor, floor), rtol=1e-13, atol=0)


def test_divisor_is_the_mean_distance_of_each_sample_in_fp64():
    divisor = divisor_of("abs_mean", X0, X0_REF, 1e-3)
    expected = torch.tensor([(a - b).abs().sum() / 32 for a, b in zip(X0.double(), X0_REF.double(), strict=True)])
    assert divisor.dtype == torch.float64 and divisor.shape == (3,)
    torch.testing.assert_close(divisor, expected.double(), rtol=1e-6, atol=0)
    near = X0.double() + 1e-5  # fp32 arithmetic would keep two digits of this distance
    assert divisor_of("abs_mean", X0, near, 1e-9).tolist() == pytest.approx([1e-5] * 3, rel=1e-9)


def test_divisor_has_a_floor():
    assert divisor_of("abs_mean", X0, X0, 1e-3).tolist() == [1e-3] * 3
    assert divisor_of("abs_mean", X0, X0 + 5e-4, 1e-3).tolist() == [1e-3] * 3


def test_no_divisor_is_one():
    assert divisor_of("none", X0, X0_REF, 1e-3).tolist() == [1, 1, 1]


def test_an_unknown_divisor_is_refused():
    with pytest.raises(ValueError, match="median"):
        divisor_of("median", X0, X0_REF, 1e-3)


def test_sum_is_the_number_of_elements_times_mean():
    total, mean = (ikl_gradient(ALPHA, SIGMA, "unit", kind, x0_psi=X0_PSI, x0_ref=X0_REF) for kind in ("sum", "mean"))
    torch.testing.assert_close(total, 32 * mean, rtol=1e-14, atol=0)


def test_generator_gradient_is_divergence_minus_scaled_reward():
    gradient = generator_gradient(X0.double(), REWARD, 2.5)
    assert gradient.dtype == torch.float64
    torch.testing.assert_close(gradient, X0.double() - 2.5 * REWARD.double(), rtol=1e-14, atol=1e-14)
    assert torch.equal(generator_gradient(X0.double(), REWARD, 0.0), X0.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_the_surrogate_is_g_over_b(dtype):
    x0 = X0.to(dtype, copy=True).requires_grad_()
    g = REWARD.double().requires_grad_()  # even a g with a graph is a constant here
    loss = surrogate(x0, g)
    loss.backward()
    assert loss.shape == () and g.grad is None
    torch.testing.assert_close(x0.grad, (REWARD / 3).to(dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_surrogate_against_finite_differences_of_the_objective(frame, weight):
    """d/d(m, S) of  -alpha_rew E r(x_0) + IKL  for a Gaussian in two dimensions, all in fp64."""
    m = torch.tensor([0.9, -0.4], dtype=torch.float64)
    S = torch.tensor([[0.7, 0.3], [-0.2, 0.5]], dtype=torch.float64)
    K, centre = torch.tensor([[1.0, 0.3], [0.3, 0.6]]).double(), torch.tensor([2.0, -1.0]).double()
    reference = Gaussian(torch.tensor([0.3, 0.1]).double(), torch.tensor([[0.8, 0.35], [0.35, 0.5]]).double())
    scale = 0.7

    def value(theta):
        m, S = theta[:2], theta[2:].view(2, 2)
        reward = -((m - centre) @ K @ (m - centre) + torch.trace(K @ S @ S.T)) / 2
        return ikl(frame, weight, m, S, reference) - scale * reward

    theta = torch.cat([m, S.flatten()]).requires_grad_()
    z, eps, t = cubature(frame.t, 2)
    x0 = (theta[:2] + z.flatten(1) @ theta[2:].view(2, 2).T)[:, :, None, None]
    alpha, sigma = frame.diffusion.schedule.alpha_sigma(t)
    x_t = frame.diffusion.noised(x0, t, eps).detach().flatten(1)
    x0_psi, x0_ref = (
        gaussian.x0_given(x_t, alpha, sigma).view_as(x0) for gaussian in (Gaussian(m, S @ S.T), reference)
    )
    settings = Objective(weight=weight, divisor="none", reward_scale=scale)
    divergence = divergence_gradient(settings, x0.detach(), alpha, sigma, x0_psi=x0_psi, x0_ref=x0_ref)
    reward = ((centre - x0.detach().flatten(1)) @ K).view_as(x0)
    surrogate(x0, generator_gradient(divergence, reward, scale)).backward()

    steps = 1e-4 * torch.eye(6, dtype=torch.float64)
    differences = torch.stack([value(theta.detach() + h) - value(theta.detach() - h) for h in steps]) / 2e-4
    torch.testing.assert_close(theta.grad, differences, rtol=1e-6, atol=1e-6)


def reply(finite):
    gradient = REWARD.clone()
    gradient[~torch.tensor(finite)] = float("nan")
    reward = torch.tensor([1.0, 2.0, 6.0]).where(torch.tensor(finite), float("nan"))
    return RewardReply(reward, {"clip": 10 * reward}, gradient, torch.tensor(finite))


def answers(reward):
    return Answers(x0_psi=X0_PSI, x0_ref=X0_REF, alpha=ALPHA, sigma=SIGMA, reward=reward)


def test_feedback_assembles_the_gradient():
    settings = Objective(weight="unit", reward_scale=3.0)
    g, measured = feedback(settings, X0, answers(reply([True] * 3)), 2.0)
    divergence = by_hand("unit", "sum", "abs_mean", 1e-3)
    torch.testing.assert_close(g, divergence - 3.0 / 2.0 * REWARD.double(), rtol=1e-12, atol=1e-12)
    gap = (X0_PSI - X0_REF).double().square().flatten(1).mean(1).sqrt().mean().item()
    assert measured == pytest.approx(
        {
            "score_gap": gap,
            "divergence_norm": divergence.flatten(1).norm(dim=1).mean().item(),
            "reward_dropped": 0.0,
            "reward": 3.0,
            "reward/clip": 30.0,
            "reward_gradient_norm": 1.5 * REWARD.flatten(1).norm(dim=1).mean().item(),
        },
        rel=1e-6,
    )


def test_feedback_keeps_the_divergence_of_a_sample_whose_reward_is_not_finite():
    settings = Objective(weight="unit", reward_scale=3.0)
    g, measured = feedback(settings, X0, answers(reply([True, False, True])), 1.0)
    kept = torch.tensor([1.0, 0.0, 1.0])[:, None, None, None]
    expected = by_hand("unit", "sum", "abs_mean", 1e-3) - 3.0 * (kept * REWARD).double()
    torch.testing.assert_close(g, expected, rtol=1e-12, atol=1e-12)
    assert measured["reward_dropped"] == pytest.approx(1 / 3) and measured["reward"] == 3.5


def test_feedback_without_a_reward_is_the_divergence():
    g, measured = feedback(Objective(weight="unit"), X0, answers(None), 1.0)
    torch.testing.assert_close(g, by_hand("unit", "sum", "abs_mean", 1e-3), rtol=1e-12, atol=0)
    assert set(measured) == {"score_gap", "divergence_norm"}


def test_learning_rate_warms_up_linearly_and_stays():
    optim = Optimiser(lr=0.4, warmup_steps=4)
    assert [learning_rate(optim, k) for k in (0, 1, 3, 4, 100)] == pytest.approx([0.1, 0.2, 0.4, 0.4, 0.4])
    assert learning_rate(Optimiser(lr=0.4), 0) == 0.4


def test_moving_average_keeps_the_share_of_its_decay():
    average = torch.tensor([1.0, 2.0])
    ema_update(average, torch.tensor([3.0, 0.0]), 0.75)
    assert average.tolist() == [1.5, 1.5]
