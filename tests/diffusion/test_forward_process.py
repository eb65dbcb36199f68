"""Schedules and x_t, against diffusers' own schedulers."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.schedule import FlowSchedule, linear_vp, per_sample, vp_from_betas

DDPM = DDPMScheduler(beta_start=1e-4, beta_end=2e-2, beta_schedule="linear")
STABLE_DIFFUSION = DDPMScheduler(beta_start=8.5e-4, beta_end=1.2e-2, beta_schedule="scaled_linear")
T = torch.tensor([0, 1, 20, 400, 625, 979, 999])


@pytest.mark.parametrize("scheduler", [DDPM, STABLE_DIFFUSION], ids=["linear", "scaled_linear"])
def test_table_from_betas_is_diffusers_alphas_cumprod(scheduler):
    schedule = vp_from_betas(scheduler.betas)
    assert schedule.num_timesteps == 1000 and schedule.alphas_cumprod.dtype == torch.float64
    torch.testing.assert_close(schedule.alphas_cumprod, scheduler.alphas_cumprod.double(), rtol=3e-5, atol=0)


def test_linear_vp_is_the_ddpm_schedule():
    torch.testing.assert_close(
        linear_vp(1e-4, 2e-2, 1000).alphas_cumprod.float(), DDPM.alphas_cumprod, rtol=3e-5, atol=0
    )


def test_first_steps_of_the_linear_schedule_by_hand():
    alpha, sigma = linear_vp(0.1, 0.3, 3).alpha_sigma(torch.tensor([0, 1, 2]))
    torch.testing.assert_close(alpha**2, torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]).double(), rtol=1e-7, atol=0)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3).double(), rtol=1e-15, atol=0)


def test_sd_reads_sigma_convention_where_sigma_is_two_and_a_half_alpha():
    alpha, sigma = vp_from_betas(STABLE_DIFFUSION.betas).alpha_sigma(torch.tensor([625]))
    assert float(sigma / alpha) == pytest.approx(2.5, abs=0.01)


@pytest.mark.parametrize("scheduler", [DDPM, STABLE_DIFFUSION], ids=["linear", "scaled_linear"])
def test_vp_noised_is_diffusers_add_noise(scheduler):
    x0, eps = torch.randn(2, len(T), 4, 3, 2, generator=torch.Generator().manual_seed(0))
    ours = Diffusion(vp_from_betas(scheduler.betas), "epsilon").noised(x0, T, eps)
    assert ours.dtype == x0.dtype
    torch.testing.assert_close(ours, scheduler.add_noise(x0, eps, T), rtol=1e-5, atol=1e-5)


def test_flow_noised_is_diffusers_scale_noise():
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    t = scheduler.timesteps[[0, 1, 250, 500, 998, 999]]  # 1000 .. 1
    x0, eps = torch.randn(2, len(t), 4, 3, 2, generator=torch.Generator().manual_seed(0))
    ours = Diffusion(FlowSchedule(1000), "flow_prediction").noised(x0, t, eps)
    torch.testing.assert_close(ours, scheduler.scale_noise(x0, t, eps), rtol=1e-6, atol=1e-6)


def test_flow_ends_are_clean_and_pure_noise():
    alpha, sigma = FlowSchedule(1000).alpha_sigma(torch.tensor([0, 250, 1000]))
    assert alpha.tolist() == [1, 0.75, 0] and sigma.tolist() == [0, 0.25, 1]


def test_noised_keeps_the_dtype_of_x0():
    diffusion = Diffusion(FlowSchedule(10), "flow_prediction")
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert diffusion.noised(torch.ones(1, 2, dtype=dtype), torch.tensor([3]), torch.ones(1, 2)).dtype == dtype


def test_per_sample_multiplies_rows_and_not_columns():
    rows = per_sample(torch.tensor([2.0, 3.0]), torch.ones(2, 2, 1, 1)) * torch.ones(2, 2, 1, 1)
    assert rows.flatten().tolist() == [2, 2, 3, 3]
