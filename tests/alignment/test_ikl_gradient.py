"""The IKL gradient with exact scores, against closed forms, in one and several dimensions, for every w(t)."""

import pytest
import torch
from closed_forms import FRAMES, WEIGHTS, Gaussian, cubature, ikl, ikl_gradients, mean_precision
from gaussian_run import objective, reference_teacher, training_gradient

from dipp_ray.alignment.divergence import ikl_gradient, score_gap, weight_of_time
from dipp_ray.diffusion.parameterisation import score_of_x0
from dipp_ray.diffusion.schedule import per_sample


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


# d: generator's m, S and the reference, with full matrices and an S that is neither symmetric nor triangular.
CASES = {
    1: (tensor(1.1), tensor([0.6]), Gaussian(tensor(0.3), tensor([0.64]))),
    2: (
        tensor(0.9, -0.4),
        tensor([0.7, 0.3], [-0.2, 0.5]),
        Gaussian(tensor(0.3, 0.1), tensor([0.8, 0.35], [0.35, 0.5])),
    ),
    3: (
        tensor(0.2, -1.0, 0.5),
        tensor([0.7, 0.3, 0.1], [-0.2, 0.5, 0.4], [0.0, 0.6, 1.1]),
        Gaussian(tensor(0.3, 0.1, -0.2), tensor([0.8, 0.3, -0.1], [0.3, 0.5, 0.2], [-0.1, 0.2, 1.2])),
    ),
}

frames = pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
weights = pytest.mark.parametrize("weight", WEIGHTS)
dimensions = pytest.mark.parametrize("d", CASES)


@frames
@weights
@dimensions
def test_closed_forms_are_the_derivative_of_the_integral_kl(frame, weight, d):
    m, S, reference = CASES[d]
    m, S = m.clone().requires_grad_(), S.clone().requires_grad_()
    in_m, in_S = torch.autograd.grad(ikl(frame, weight, m, S, reference), (m, S))
    for closed, automatic in zip(ikl_gradients(frame, weight, m, S, reference), (in_m, in_S), strict=True):
        torch.testing.assert_close(closed, automatic, rtol=1e-9, atol=1e-9)


def exact_predictions(frame, m, S, reference):
    """x_0, z, the exact x_0 predictions of score model and teacher at x_t, and alpha, sigma: all in fp64."""
    z, eps, t = cubature(frame.t, len(m))
    x0 = m[:, None, None] + (S @ z.flatten(1).T).T[:, :, None, None]
    alpha, sigma = frame.diffusion.schedule.alpha_sigma(t)
    x_t = frame.diffusion.noised(x0, t, eps)
    generator = Gaussian(m, S @ S.T)
    x0_psi, x0_ref = (p.x0_given(x_t.flatten(1), alpha, sigma).view_as(x0) for p in (generator, reference))
    return x0, z, x_t, x0_psi, x0_ref, alpha, sigma


@frames
@weights
@dimensions
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ikl_gradient_in_fp64(frame, weight, d, reduction):
    m, S, reference = CASES[d]
    _, z, _, x0_psi, x0_ref, alpha, sigma = exact_predictions(frame, m, S, reference)
    g = ikl_gradient(alpha, sigma, weight, reduction, x0_psi=x0_psi, x0_ref=x0_ref).flatten(1)
    assert g.dtype == torch.float64
    elements = d if reduction == "mean" else 1
    in_m, in_S = ikl_gradients(frame, weight, m, S, reference)
    torch.testing.assert_close(g.mean(0) * elements, in_m, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(g.T @ z.flatten(1) / len(z) * elements, in_S, rtol=1e-9, atol=1e-9)


@frames
@weights
def test_ikl_gradient_is_w_alpha_times_the_difference_of_scores(frame, weight):
    _, _, x_t, x0_psi, x0_ref, alpha, sigma = exact_predictions(frame, *CASES[2])
    scores = score_of_x0(x0_psi, x_t, alpha, sigma) - score_of_x0(x0_ref, x_t, alpha, sigma)
    expected = per_sample(WEIGHTS[weight](alpha, sigma) * alpha, x_t) * scores
    torch.testing.assert_close(
        ikl_gradient(alpha, sigma, weight, "sum", x0_psi=x0_psi, x0_ref=x0_ref), expected, rtol=1e-9, atol=1e-9
    )


@frames
@weights
@dimensions
def test_the_training_step_gives_the_closed_form(frame, weight, d):
    """Through generate, predict, predict_guided, the surrogate and backward, with tensors in fp32 between the roles."""
    m, S, reference = CASES[d]
    teacher = reference_teacher(frame, reference)
    settings = objective(weight, guidance_scale=1.0)
    gradients = training_gradient(frame, settings, m, S, teacher, torch.zeros_like, torch.zeros_like(m))
    for ours, closed in zip(gradients, ikl_gradients(frame, weight, m, S, reference), strict=True):
        torch.testing.assert_close(ours, closed, rtol=1e-5, atol=2e-6)


def test_mean_precision_of_the_flow_test_vector():
    A = mean_precision(FRAMES["flow"], "unit", tensor([0.64]))
    assert float(A) == pytest.approx(0.703532, abs=1e-6)


@weights
def test_weight_of_time(weight):
    alpha, sigma = tensor(0.8, 0.3), tensor(0.6, 0.7)
    torch.testing.assert_close(weight_of_time(weight, alpha, sigma), WEIGHTS[weight](alpha, sigma), rtol=1e-14, atol=0)


def test_unit_weight_where_alpha_is_zero():
    assert weight_of_time("unit", tensor(0.0), tensor(1.0)).tolist() == [1]


def test_an_unknown_weight_is_refused():
    with pytest.raises(ValueError, match="cubed"):
        weight_of_time("cubed", tensor(1.0), tensor(1.0))


def test_score_gap_is_the_root_mean_square_of_each_sample():
    gap = score_gap(torch.tensor([[[3.0, 4.0]], [[1.0, 1.0]]]), torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]]]))
    torch.testing.assert_close(gap, tensor(12.5**0.5, 1.0))
