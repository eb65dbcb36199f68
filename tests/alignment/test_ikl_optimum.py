"""Where the training step's gradient vanishes, with exact scores: the closed forms' optimum."""

import dataclasses

import pytest
import scipy.optimize
import torch
from closed_forms import (
    FRAMES,
    WEIGHTS,
    Gaussian,
    collapse_bound,
    exact_network,
    eye,
    linear_optimum,
    mean_precision,
    quadratic_optimum,
)
from gaussian_run import find_optimum, objective, reference_teacher, training_gradient


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


REFERENCES = {
    1: Gaussian(tensor(0.3), tensor([0.64])),
    2: Gaussian(tensor(0.3, 0.1), tensor([0.8, 0.35], [0.35, 0.5])),
}
NARROW = {1: tensor([0.25]), 2: tensor([0.25, 0.1], [0.1, 0.4])}  # s0^2 of p(x | c)
SLOPES = {1: tensor(1.0), 2: tensor(1.0, -0.5)}
CURVATURES = {1: tensor([1.0]), 2: tensor([1.0, 0.3], [0.3, 0.6])}
CENTRES = {1: tensor(2.0), 2: tensor(2.0, -1.0)}

frames = pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
weights = pytest.mark.parametrize("weight", WEIGHTS)
dimensions = pytest.mark.parametrize("d", REFERENCES)


def linear_reward(b):
    return lambda x0: b[:, None, None].expand_as(x0)


def quadratic_reward(K, centre):
    return lambda x0: -(K @ (x0.double().flatten(1) - centre).T).T.view_as(x0)


def assert_spread(frame, weight, S, precision):
    """S solves E_t[ w alpha^2 U(S)^-1 ] = precision."""
    torch.testing.assert_close(mean_precision(frame, weight, S @ S.T), precision, rtol=2e-5, atol=2e-5)


@frames
@weights
@dimensions
def test_linear_reward(frame, weight, d):
    reference, b = REFERENCES[d], SLOPES[d]
    settings = objective(weight, reward_scale=0.3, guidance_scale=1.0)
    m, S = find_optimum(frame, settings, reference_teacher(frame, reference), linear_reward(b), reference.mean)
    A = mean_precision(frame, weight, reference.covariance)
    torch.testing.assert_close(m, linear_optimum(A, reference.mean, b, 0.3), rtol=0, atol=2e-5)
    torch.testing.assert_close(S @ S.T, reference.covariance, rtol=0, atol=5e-5)


@frames
@weights
@dimensions
def test_quadratic_reward(frame, weight, d):
    reference, K, centre = REFERENCES[d], CURVATURES[d], CENTRES[d]
    A = mean_precision(frame, weight, reference.covariance)
    w, alpha, sigma = frame.coefficients(weight)
    room = torch.linalg.eigvalsh((w * (alpha / sigma) ** 2).mean() * eye(d) - A).min()
    scale = float(min(0.4 * room / torch.linalg.eigvalsh(K).max(), 1.0))
    settings = objective(weight, reward_scale=scale, guidance_scale=1.0)
    reward = quadratic_reward(K, centre)
    m, S = find_optimum(frame, settings, reference_teacher(frame, reference), reward, reference.mean)
    torch.testing.assert_close(m, quadratic_optimum(A, reference.mean, K, centre, scale), rtol=0, atol=2e-5)
    assert_spread(frame, weight, S, A + scale * K)


def guided_teacher(frame, gain, narrow, spread):
    """Knows x | c ~ N(gain c, narrow) and, for the null prompt, c ~ N(0, spread^2 I) marginalised."""
    d = len(narrow)
    wide = narrow + gain**2 * spread**2 * eye(d)
    conditional = exact_network(frame.diffusion, lambda embeds: Gaussian(gain * embeds.tokens[:, 0, 1:], narrow))
    marginal = exact_network(frame.diffusion, lambda embeds: Gaussian(torch.zeros(d).double(), wide))

    def teacher(x_t, t, embeds):
        prompted = embeds.tokens[:, 0, 0].view(-1, 1, 1, 1) == 1
        return torch.where(prompted, conditional(x_t, t, embeds), marginal(x_t, t, embeds))

    return teacher, wide


@frames
@weights
@dimensions
def test_guidance_acts_as_an_implicit_reward(frame, weight, d):
    omega = 3.0 if weight == "unit" else 1.3
    gain, condition = 0.9, tensor(0.7, -0.4)[:d]
    teacher, wide = guided_teacher(frame, gain, NARROW[d], 1.0)
    settings = objective(weight, guidance_scale=omega)
    m, S = find_optimum(frame, settings, teacher, torch.zeros_like, condition, condition)
    A = mean_precision(frame, weight, NARROW[d])
    P = omega * A - (omega - 1) * mean_precision(frame, weight, wide)
    torch.testing.assert_close(m, torch.linalg.solve(P, omega * gain * A @ condition), rtol=0, atol=3e-5)
    assert_spread(frame, weight, S, P)


FLOW = FRAMES["flow"]


def test_vector_of_the_linear_reward():
    settings = objective("unit", reward_scale=0.5, guidance_scale=1.0)
    teacher = reference_teacher(FLOW, REFERENCES[1])
    m, S = find_optimum(FLOW, settings, teacher, linear_reward(tensor(1.0)), tensor(0.0))
    assert (m.item(), S.item()) == (pytest.approx(1.010699, abs=5e-6), pytest.approx(0.8, abs=5e-6))


def test_vector_of_the_quadratic_reward():
    settings = objective("unit", reward_scale=0.5, guidance_scale=1.0)
    teacher = reference_teacher(FLOW, REFERENCES[1])
    m, S = find_optimum(FLOW, settings, teacher, quadratic_reward(tensor([1.0]), tensor(2.0)), tensor(0.0))
    assert (m.item(), S.item()) == (pytest.approx(1.006254, abs=5e-6), pytest.approx(0.555213, abs=5e-6))


def test_vector_of_guidance():
    teacher, _ = guided_teacher(FLOW, 1.0, tensor([0.25]), 1.0)
    condition = tensor(0.7)
    settings = objective("unit", guidance_scale=3.0)
    m, S = find_optimum(FLOW, settings, teacher, torch.zeros_like, condition, condition)
    assert (m.item(), S.item()) == (pytest.approx(0.875494, abs=5e-6), pytest.approx(0.260250, abs=5e-6))


def slope_over_spread(frame, weight, scale, S):
    """(dL/dS) / S at S for the quadratic reward k = 1: negative asks for a wider generator, positive for a narrower."""
    settings = objective(weight, reward_scale=scale, guidance_scale=1.0)
    teacher, m = reference_teacher(frame, REFERENCES[1]), tensor(0.0)
    reward = quadratic_reward(tensor([1.0]), tensor(2.0))
    return training_gradient(frame, settings, m, tensor([S]), teacher, reward, m)[1].item() / S


def test_vector_of_the_collapse_bound():
    fine = dataclasses.replace(FLOW, t=20 + torch.arange(0.05, 960, 0.1, dtype=torch.float64))  # for 1 / t^2
    A = mean_precision(fine, "unit", REFERENCES[1].covariance)
    assert collapse_bound(fine, "unit", A) == pytest.approx(43.209, abs=5e-4)


@frames
@weights
def test_collapse_beyond_the_bound_and_not_before(frame, weight):
    """Below the bound a point widens again; above it every spread shrinks: the generator collapses to a point."""
    bound = collapse_bound(frame, weight, mean_precision(frame, weight, REFERENCES[1].covariance))
    assert slope_over_spread(frame, weight, 0.99 * bound, 5e-4) < 0
    for S in (5e-4, 5e-3, 0.05, 0.5, 1.0, 3.0):
        assert slope_over_spread(frame, weight, 1.01 * bound, S) > 0


def test_spread_follows_the_scalar_equation_towards_a_point():
    """S* of the quadratic reward k = 1 at several scales, against a root of the closed form."""
    A = mean_precision(FLOW, "unit", REFERENCES[1].covariance)
    teacher, reward = reference_teacher(FLOW, REFERENCES[1]), quadratic_reward(tensor([1.0]), tensor(2.0))

    def scale_of(S):
        return float(mean_precision(FLOW, "unit", tensor([S * S])) - A)

    scales, found = (0.5, 4.0, 20.0), []
    for scale in scales:
        settings = objective("unit", reward_scale=scale, guidance_scale=1.0)
        found.append(abs(find_optimum(FLOW, settings, teacher, reward, tensor(0.0))[1].item()))
    roots = [scipy.optimize.brentq(lambda S, scale=scale: scale_of(S) - scale, 1e-4, 2.0) for scale in scales]
    assert found == pytest.approx(roots, abs=1e-5)
    assert found[0] > found[1] > found[2]
