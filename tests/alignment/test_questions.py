"""What each role answers about x_0: dtypes, graphs, guidance, and that no one's randomness is drawn here."""

import pytest
import torch

from dipp_ray.alignment.questions import generate, predict, predict_guided
from dipp_ray.diffusion.one_step import OneStep
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.diffusion.schedule import linear_vp

DIFFUSION = Diffusion(linear_vp(1e-4, 2e-2, 1000), "epsilon")
X0, EPS = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.tensor([20, 500, 979])
EMBEDS = PromptEmbeds(torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand(3, 2, 1), torch.ones(3, 2))
NULL = PromptEmbeds(torch.full((1, 1, 1), -1.0), torch.ones(1, 1))


def prompted(x_t, t, embeds):
    """An answer that depends on every part of the question."""
    read = (embeds.tokens * embeds.mask[:, :, None]).sum(1) / embeds.mask.sum(1, keepdim=True)
    return x_t.tanh() * read[:, :, None, None] + t[:, None, None, None] / 1000


@pytest.mark.parametrize("convention", ["unit", "sigma"])
def test_generate_is_one_step_at_t_star(convention):
    one_step, weight = OneStep(DIFFUSION, 440, convention), torch.ones(1, requires_grad=True)
    asked = []

    def network(network_input, t, embeds):
        asked.append((network_input, t, embeds))
        return weight * network_input.tanh()

    x0 = generate(network, one_step, EPS, EMBEDS)
    alpha_squared = DIFFUSION.schedule.alphas_cumprod[440]
    a, s = alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
    read = EPS if convention == "unit" else (s * EPS.double()).float()
    assert torch.equal(asked[0][0], read) and asked[0][1].tolist() == [440] * 3 and asked[0][2] is EMBEDS
    assert x0.dtype == torch.float32 and x0.requires_grad
    torch.testing.assert_close(x0, ((read.double() - s * read.tanh().double()) / a).float(), rtol=1e-6, atol=1e-6)


def test_predict_is_x0_of_the_networks_output_at_x_t():
    x_t = DIFFUSION.noised(X0, T, EPS)
    weight = torch.ones(1, requires_grad=True)
    x0 = predict(lambda *question: weight * prompted(*question), DIFFUSION, X0, EMBEDS, T, EPS)
    assert x0.dtype == torch.float32 and not x0.requires_grad
    torch.testing.assert_close(x0, DIFFUSION.x0(prompted(x_t, T, EMBEDS), x_t, T).float(), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 7.5])
def test_guided_prediction_is_the_affine_mix_of_null_and_prompt(scale):
    null = NULL.repeat(3)
    unconditional, conditional = (predict(prompted, DIFFUSION, X0, who, T, EPS).double() for who in (null, EMBEDS))
    ours = predict_guided(prompted, DIFFUSION, X0, EMBEDS, NULL, T, EPS, scale)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(
        ours.double(), (1 - scale) * unconditional + scale * conditional, rtol=1e-5, atol=1e-5 * conditional.abs().max()
    )


def test_no_guidance_asks_the_teacher_once():
    sizes = []

    def network(x_t, t, embeds):
        sizes.append((len(x_t), len(t), len(embeds)))
        return prompted(x_t, t, embeds)

    predict_guided(network, DIFFUSION, X0, EMBEDS, NULL, T, EPS, 1.0)
    predict_guided(network, DIFFUSION, X0, EMBEDS, NULL, T, EPS, 2.0)
    assert sizes == [(3, 3, 3), (6, 6, 6)]
