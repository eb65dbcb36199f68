"""The optimum under a distribution of t that is not uniform: the closed forms by SciPy's quadrature over pi(t)."""

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch
from closed_forms import FRAMES, Frame, Gaussian
from gaussian_run import find_optimum, objective, reference_teacher

from dipp_ray.alignment.hyperparameters import Times
from dipp_ray.diffusion.times import times_of

MU, VARIANCE, SCALE = 0.3, 0.64, 0.5  # METHOD.md's test vector
BENT = 0.1  # of the quadratic reward: above E[alpha^2/sigma^2] - A it has no optimum
LIMITS = (20, 980)
CASES = {
    "logit_normal": Times("logit_normal", mean=-0.4, std=0.8),
    "shifted logit_normal": Times("logit_normal", shift=3.0, mean=-0.4, std=0.8),
    "shifted uniform": Times(shift=3.0),
}


def density(times):
    """pi(tau) on the range, up to a factor: of tau' = s tau / (1 + (s - 1) tau) by the change of variables."""

    def of(tau):
        s = times.shift
        before = tau / (s - (s - 1) * tau)
        slope = s / (s - (s - 1) * tau) ** 2
        if times.distribution == "uniform":
            return slope
        logit = np.log(before / (1 - before))
        return scipy.stats.norm.pdf(logit, times.mean, times.std) / (before * (1 - before)) * slope

    return of


def average(times, f):
    """E_t[f(alpha, sigma)] of a flow, by adaptive quadrature."""
    low, high = (edge / 1000 for edge in LIMITS)
    pi = density(times)
    integral, whole = (
        scipy.integrate.quad(g, low, high, limit=200, epsabs=1e-12)[0]
        for g in (lambda tau: pi(tau) * f(1 - tau, tau), pi)
    )
    return integral / whole


def precision(times, variance):
    """A = E_t[ w alpha^2 / (alpha^2 variance + sigma^2) ] for w = 1."""
    return average(times, lambda a, s: a**2 / (a**2 * variance + s**2))


@pytest.mark.parametrize("times", CASES.values(), ids=CASES)
def test_the_optimum_of_a_reward_under_this_distribution(times):
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    flow = FRAMES["flow"].one_step
    t = times_of(u, flow.diffusion.schedule, Times(**{**vars(times), "continuous": True}), LIMITS)
    frame = Frame(flow, t.double())
    reference = Gaussian(torch.tensor([MU]).double(), torch.tensor([[VARIANCE]]).double())
    teacher, settings = reference_teacher(frame, reference), objective("unit", reward_scale=SCALE, guidance_scale=1.0)
    A = precision(times, VARIANCE)

    m, S = find_optimum(frame, settings, teacher, torch.ones_like, reference.mean)  # r = x
    assert m.item() == pytest.approx(MU + SCALE / A, abs=3e-5)
    assert S.item() ** 2 == pytest.approx(VARIANCE, abs=1e-4)

    settings = objective("unit", reward_scale=BENT, guidance_scale=1.0)  # r = -(x - 2)^2 / 2
    m, S = find_optimum(frame, settings, teacher, lambda x0: 2.0 - x0.double(), reference.mean)
    assert m.item() == pytest.approx((A * MU + BENT * 2.0) / (A + BENT), abs=3e-5)
    spread = scipy.optimize.brentq(lambda v: A - precision(times, v) + BENT, 0.01, 2.0)
    assert S.item() ** 2 == pytest.approx(spread, abs=1e-4)
    uniform = precision(Times(), VARIANCE)
    assert abs(A - uniform) > 0.03, "the case would not tell its distribution from a uniform one"
