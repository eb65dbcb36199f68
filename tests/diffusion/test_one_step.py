"""The generator: the teacher's network read at t*, in both conventions."""

import pytest
import torch

from dipp_ray.diffusion.one_step import OneStep
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.schedule import FlowSchedule, linear_vp
from dipp_ray.errors import UserError

LINEAR = Diffusion(linear_vp(1e-4, 2e-2, 1000), "epsilon")
FLOW = Diffusion(FlowSchedule(1000), "flow_prediction")
Z = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def test_unit_convention_reads_z_itself():
    assert torch.equal(OneStep(LINEAR, 999, "unit").input(Z), Z)


def test_sigma_convention_reads_sigma_z():
    sigma = (1 - LINEAR.schedule.alphas_cumprod[440]).sqrt()
    network_input = OneStep(LINEAR, 440, "sigma").input(Z)
    assert network_input.dtype == torch.float32
    torch.testing.assert_close(network_input, (sigma * Z.double()).float(), rtol=0, atol=0)


@pytest.mark.parametrize("convention", ["unit", "sigma"])
def test_x0_is_input_minus_sigma_eps_over_alpha_at_t_star(convention):
    one_step = OneStep(LINEAR, 440, convention)
    alpha_squared = LINEAR.schedule.alphas_cumprod[440]
    network_input, output = one_step.input(Z), torch.randn_like(Z).requires_grad_()
    x0 = one_step.x0(output, network_input)
    expected = (network_input.double() - (1 - alpha_squared).sqrt() * output.double()) / alpha_squared.sqrt()
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0, expected.float(), rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(x0.sum(), output)
    torch.testing.assert_close(slope, torch.full_like(Z, -((1 / alpha_squared - 1) ** 0.5)))


def test_times_are_t_star_for_every_sample():
    times = OneStep(LINEAR, 440, "sigma").times(Z)
    assert times.dtype == torch.int64 and times.tolist() == [440, 440, 440]


def test_a_flow_is_read_at_its_end_where_both_conventions_coincide():
    unit, sigma = OneStep(FLOW, 1000, "unit"), OneStep(FLOW, 1000, "sigma")
    assert torch.equal(unit.input(Z), Z) and torch.equal(sigma.input(Z), Z)
    torch.testing.assert_close(unit.x0(0.25 * Z, Z), 0.75 * Z)


@pytest.mark.parametrize("t_star", [-1, 0, 1000, 1001])
def test_t_star_outside_a_vp_schedule_is_refused(t_star):
    with pytest.raises(UserError, match=rf"model\.t_star={t_star} .*choose 1 to 999"):
        OneStep(LINEAR, t_star, "sigma")


def test_the_ends_of_a_vp_schedule_are_accepted():
    assert [OneStep(LINEAR, t_star, "unit").t_star for t_star in (1, 999)] == [1, 999]


@pytest.mark.parametrize("t_star", [0, 625, 999, 1001])
def test_a_flow_read_before_its_end_is_refused(t_star):
    with pytest.raises(UserError, match=r"set model\.t_star=1000"):
        OneStep(FLOW, t_star, "unit")
