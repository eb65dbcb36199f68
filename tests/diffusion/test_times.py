"""The times of a step: the distributions' closed forms, truncated by the ranges, one uniform number a draw."""

import numpy as np
import pytest
import scipy.stats
import torch

from dipp_ray.alignment.hyperparameters import Objective, Times
from dipp_ray.alignment.times import divergence_times, score_times
from dipp_ray.diffusion.noise import Draws
from dipp_ray.diffusion.schedule import FlowSchedule, linear_vp
from dipp_ray.diffusion.times import draw_times, mass, times_of

FLOW, VP = FlowSchedule(1000), linear_vp(1e-4, 2e-2, 1000)
N = 4000
NEAR = 1.63 / N**0.5  # Kolmogorov's distance, of a hundred samples that one exceeds
CASES = [
    *[("uniform", shift, 0.0, 1.0, limits) for shift in (1.0, 3.0, 0.5) for limits in ((0, 1000), (20, 980))],
    ("logit_normal", 1.0, 0.0, 1.0, (0, 1000)),
    ("logit_normal", 1.0, 0.0, 1.0, (20, 980)),
    ("logit_normal", 3.0, -0.5, 0.7, (0, 1000)),
    ("logit_normal", 3.0, 0.5, 2.0, (300, 700)),
    ("logit_normal", 1.0, -3.7, 1.0, (900, 1000)),  # a tail, of 2e-9 of the whole: less is refused before a run
    ("logit_normal", 1.0, 4.0, 1.0, (1, 100)),
]


def cdf(distribution, shift, mean, std, limits):
    """P(t <= x) of the truncated distribution, by SciPy's normal and its survival function."""

    def unshifted(tau):
        return tau / (shift - (shift - 1) * tau)

    def of(tau):
        if distribution == "uniform":
            return unshifted(tau)
        with np.errstate(divide="ignore"):
            odds = unshifted(tau) / (1 - unshifted(tau))
            z = (np.log(odds) - mean) / std
        return scipy.stats.norm.cdf(z) if mean >= 0 else -scipy.stats.norm.sf(z)

    low, high = (np.float64(edge) / 1000 for edge in limits)
    return lambda x: (of(np.asarray(x) / 1000) - of(low)) / (of(high) - of(low))


def settings(case, **more):
    distribution, shift, mean, std, _ = case
    return Times(distribution=distribution, shift=shift, mean=mean, std=std, **more)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_continuous_times_have_the_closed_form(case):
    t = draw_times(Draws(5, 0, 0, range(N)), "score_t", FLOW, settings(case, continuous=True), case[-1])
    assert t.dtype == torch.float32 and t.shape == (N,)
    assert t.min() >= case[-1][0] and t.max() <= case[-1][1] and (t != t.round()).double().mean() > 0.9
    assert scipy.stats.kstest(t.double().numpy(), cdf(*case)).statistic < NEAR


@pytest.mark.parametrize("schedule", [FLOW, VP], ids=["flow", "vp"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_whole_steps_hold_the_probability_up_to_the_next(case, schedule):
    """Step k that of [k, k + 1), to the first and last of the range."""
    low, high = case[-1]
    t = draw_times(Draws(6, 0, 0, range(N)), "divergence_t", schedule, settings(case), case[-1])
    assert t.dtype == torch.int64 and t.min() >= low and t.max() < high
    counts = np.bincount(t.numpy(), minlength=high)[low:high].cumsum() / N
    assert np.abs(counts - cdf(*case)(np.arange(low, high) + 1.0)).max() < NEAR
    ends = times_of(torch.tensor([0.0, 1 - 2.0**-53]), schedule, settings(case), case[-1])
    assert ends.tolist() == [low, high - 1]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_median_is_exact_and_times_rise_with_the_number(case):
    u = torch.linspace(0, 1 - 2.0**-53, 999, dtype=torch.float64)
    t = times_of(u, FLOW, settings(case, continuous=True), case[-1]).double()
    assert (t.diff() >= 0).all()
    np.testing.assert_allclose(cdf(*case)(t[1:-1].numpy()), u[1:-1], rtol=0, atol=2e-5)


def test_uniform_whole_steps_are_numpys_integers_as_ever():
    draws = Draws(7, 3, 1, [11, 12])
    assert score_times(Objective(), VP, draws).tolist() == [113, 500]
    assert divergence_times(Objective(), VP, draws).tolist() == [811, 358]
    assert divergence_times(Objective(), FLOW, draws).tolist() == [811, 358]


def test_a_time_is_a_function_of_its_own_sample_and_purpose():
    objective = Objective(score_times=Times("logit_normal"), divergence_times=Times("logit_normal"))
    whole = divergence_times(objective, VP, Draws(7, 3, 1, range(8)))
    assert torch.equal(whole[2:5], divergence_times(objective, VP, Draws(7, 3, 1, range(2, 5))))
    assert not torch.equal(whole, score_times(objective, VP, Draws(7, 3, 1, range(8))))
    assert torch.equal(
        whole, divergence_times(Objective(divergence_times=Times("logit_normal")), VP, Draws(7, 3, 1, range(8)))
    )


def test_golden_values():
    """Written down: a run with these settings keeps its times."""
    draws = Draws(7, 3, 1, [11, 12])
    assert draws.uniform("score_t").tolist() == [0.9527926491837941, 0.9472229949897278]
    assert draw_times(draws, "score_t", VP, Times("logit_normal", 3.0), (0, 1000)).tolist() == [941, 938]


def test_mass_is_that_of_the_range():
    assert mass(FLOW, Times(), (20, 980)) == pytest.approx(0.96)
    assert mass(FLOW, Times(shift=3.0), (0, 500)) == pytest.approx(0.25)
    assert mass(FLOW, Times("logit_normal"), (0, 500)) == pytest.approx(0.5)
    assert mass(FLOW, Times("logit_normal", mean=-4.0), (900, 1000)) == pytest.approx(
        scipy.stats.norm.sf(np.log(9) + 4)
    )


def test_a_table_has_no_time_between_its_steps():
    with pytest.raises(ValueError, match="whole steps"):
        draw_times(Draws(0, 0, 0, [0]), "score_t", VP, Times(continuous=True), (0, 1000))


def test_an_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match="cosine"):
        draw_times(Draws(0, 0, 0, [0]), "score_t", VP, Times("cosine"), (0, 1000))
