"""eps, x_0, v and flow: against their definitions, against each other and against diffusers."""

import pytest
import torch
from diffusers import DDPMScheduler

from dipp_ray.diffusion.parameterisation import PARAMETERISATIONS, from_x0, score_of_x0, to_epsilon, to_x0
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.schedule import FlowSchedule, linear_vp, per_sample, vp_from_betas

SCALED_LINEAR = DDPMScheduler(beta_start=8.5e-4, beta_end=1.2e-2, beta_schedule="scaled_linear")
SCHEDULES = {
    "linear": linear_vp(1e-4, 2e-2, 1000),
    "scaled_linear": vp_from_betas(SCALED_LINEAR.betas),
    "flow": FlowSchedule(1000),
}
T = torch.tensor([1, 20, 250, 400, 625, 979, 999])

schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def example(schedule):
    """x_0, eps, x_t in fp64 at every t of T, and what a perfect network of each kind would say."""
    alpha, sigma = schedule.alpha_sigma(T)
    x0, eps = torch.randn(2, len(T), 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, s = per_sample(alpha, x0), per_sample(sigma, x0)
    truth = {"epsilon": eps, "sample": x0, "v_prediction": a * eps - s * x0, "flow_prediction": eps - x0}
    return x0, eps, a * x0 + s * eps, alpha, sigma, truth


@schedules
@pytest.mark.parametrize("kind", PARAMETERISATIONS)
def test_each_kind_means_what_its_definition_says(schedule, kind):
    x0, eps, x_t, alpha, sigma, truth = example(schedule)
    torch.testing.assert_close(to_x0(kind, truth[kind], x_t, alpha, sigma), x0, rtol=0, atol=1e-11)
    torch.testing.assert_close(to_epsilon(kind, truth[kind], x_t, alpha, sigma), eps, rtol=0, atol=1e-11)
    torch.testing.assert_close(from_x0(kind, x0, x_t, alpha, sigma), truth[kind], rtol=0, atol=1e-11)


# |d x_0 / d output| of each kind, at fixed x_t.
SLOPES = {
    "epsilon": lambda a, s: s / a,
    "sample": lambda a, s: a / a,
    "v_prediction": lambda a, s: s / (a**2 + s**2),
    "flow_prediction": lambda a, s: s / (a + s),
}


@schedules
@pytest.mark.parametrize("start", PARAMETERISATIONS)
@pytest.mark.parametrize("via", PARAMETERISATIONS)
def test_every_pair_round_trips(schedule, start, via):
    """start -> via, stored in fp32 -> start, to 1e-6 times the condition number; without the storage to 1e-10."""
    _, _, x_t, alpha, sigma, truth = example(schedule)

    def convert(kind, output, to):
        return from_x0(to, to_x0(kind, output, x_t, alpha, sigma), x_t, alpha, sigma)

    between = convert(start, truth[start], via)
    torch.testing.assert_close(between, truth[via], rtol=0, atol=1e-10)
    torch.testing.assert_close(convert(via, between, start), truth[start], rtol=0, atol=1e-10)
    error = (convert(via, between.float(), start) - truth[start]).abs().flatten(1).amax(1)
    condition = SLOPES[via](alpha, sigma) / SLOPES[start](alpha, sigma)
    assert (error <= 1e-6 * condition * between.abs().flatten(1).amax(1) + 1e-10).all()


def test_eps_to_x0_is_computed_in_fp64_from_fp32_outputs():
    """x_0 = (x_t - sigma eps) / alpha cancels at the end of a VP schedule: fp32 arithmetic would miss by 1e-5."""
    schedule, t = SCHEDULES["linear"], torch.tensor([979])
    alpha, sigma = schedule.alpha_sigma(t)
    output, x_t = torch.randn(2, 1, 1000, generator=torch.Generator().manual_seed(0))
    exact = (x_t.double() - sigma * output.double()) / alpha
    in_fp32 = (x_t - sigma.float() * output) / alpha.float()
    assert (in_fp32 - exact).abs().max() > 1e-5
    assert (to_x0("epsilon", output, x_t, alpha, sigma) - exact).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_reads_an_output_as_diffusers_scheduler_does(kind):
    scheduler = DDPMScheduler.from_config(SCALED_LINEAR.config, prediction_type=kind, clip_sample=False)
    diffusion = Diffusion(SCHEDULES["scaled_linear"], kind)
    output, x_t = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    for t in (20, 400, 979):
        theirs = scheduler.step(output, t, x_t).pred_original_sample
        ours = diffusion.x0(output, x_t, torch.tensor([t]))
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-4, atol=1e-4)


def test_v_is_diffusers_velocity():
    x0, eps, x_t, alpha, sigma, _ = example(SCHEDULES["scaled_linear"])
    theirs = SCALED_LINEAR.get_velocity(x0, eps, T)
    torch.testing.assert_close(from_x0("v_prediction", x0, x_t, alpha, sigma), theirs, rtol=1e-4, atol=1e-4)


@schedules
def test_score_is_minus_eps_over_sigma(schedule):
    x0, eps, x_t, alpha, sigma, _ = example(schedule)
    score = score_of_x0(x0, x_t, alpha, sigma)
    torch.testing.assert_close(score, -eps / per_sample(sigma, eps), rtol=1e-9, atol=1e-9)


@schedules
@pytest.mark.parametrize("kind", PARAMETERISATIONS)
def test_diffusion_answers_x0_and_eps_at_its_own_time(schedule, kind):
    x0, eps, x_t, _, _, truth = example(schedule)
    diffusion = Diffusion(schedule, kind)
    torch.testing.assert_close(diffusion.noised(x0, T, eps), x_t, rtol=0, atol=1e-13)
    torch.testing.assert_close(diffusion.x0(truth[kind], x_t, T), x0, rtol=0, atol=1e-11)
    torch.testing.assert_close(diffusion.epsilon(truth[kind], x_t, T), eps, rtol=0, atol=1e-11)


@pytest.mark.parametrize("function", [to_x0, to_epsilon, from_x0])
def test_an_unknown_kind_is_refused(function):
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="velocity"):
        function("velocity", one, one, one, one)
