"""Classifier-free guidance is affine, so it may be applied to x_0, to eps or to the score."""

import pytest
import torch

from dipp_ray.diffusion.guidance import guided
from dipp_ray.diffusion.parameterisation import score_of_x0, to_epsilon
from dipp_ray.diffusion.schedule import linear_vp

NULL, CONDITIONAL, X_T = torch.randn(3, 4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_scale_zero_one_and_beyond():
    assert torch.equal(guided(NULL, CONDITIONAL, 0), NULL)
    torch.testing.assert_close(guided(NULL, CONDITIONAL, 1), CONDITIONAL, rtol=0, atol=1e-15)
    torch.testing.assert_close(guided(NULL, CONDITIONAL, 3), 3 * CONDITIONAL - 2 * NULL, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [0.0, 1.5, 7.5])
def test_guidance_on_scores_and_on_eps_equals_guidance_on_x0(scale):
    alpha, sigma = linear_vp(1e-4, 2e-2, 1000).alpha_sigma(torch.tensor([20, 300, 700, 979]))

    def score(x0):
        return score_of_x0(x0, X_T, alpha, sigma)

    def epsilon(x0):
        return to_epsilon("sample", x0, X_T, alpha, sigma)

    x0 = guided(NULL, CONDITIONAL, scale)
    torch.testing.assert_close(guided(score(NULL), score(CONDITIONAL), scale), score(x0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(guided(epsilon(NULL), epsilon(CONDITIONAL), scale), epsilon(x0), rtol=1e-12, atol=1e-12)
