"""The questions that each role is asked about x_0. A `network` is any callable (x_t, t, embeds) -> output.

The plain loop and the Ray roles call these same functions: what differs is only who holds the network.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dipp_ray.alignment.hyperparameters import ScoreWeight
from dipp_ray.alignment.score_matching import score_matching
from dipp_ray.diffusion.guidance import guided
from dipp_ray.diffusion.one_step import OneStep
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds

Network = Callable[[Tensor, Tensor, PromptEmbeds], Tensor]


def generate(network: Network, one_step: OneStep, z: Tensor, embeds: PromptEmbeds) -> Tensor:
    """Generator: x_0 = g_theta(z, c), [B, C, h, w] in fp32 from z of the same shape."""
    network_input = one_step.input(z)
    return one_step.x0(network(network_input, one_step.times(z), embeds), network_input)


def score_loss(
    network: Network,
    diffusion: Diffusion,
    x0: Tensor,
    embeds: PromptEmbeds,
    t: Tensor,
    eps: Tensor,
    weight: ScoreWeight,
) -> Tensor:
    """Score model, training: the score-matching loss at x_t, mean over the batch, a scalar in fp32.

    At alpha = 0 the weight `x0`, infinite there, stands before an error of eps that is 0: their product's limit is the
    error of x_0 itself, which a network that predicts eps does not have.
    """
    alpha, sigma = diffusion.schedule.alpha_sigma(t)
    x_t = diffusion.noised(x0, t, eps)
    output = network(x_t, t, embeds)
    eps_psi, ends = diffusion.epsilon(output, x_t, t), alpha == 0
    if weight == "x0" and ends.any():
        loss = score_matching(eps_psi, eps, alpha.where(~ends, 1.0), sigma, weight)
        at_end = (diffusion.x0(output, x_t, t) - x0.double()).square().flatten(1).mean(1)
        return loss.where(~ends, at_end).mean().float()
    return score_matching(eps_psi, eps, alpha, sigma, weight).mean().float()


@torch.no_grad()
def predict(network: Network, diffusion: Diffusion, x0: Tensor, embeds: PromptEmbeds, t: Tensor, eps: Tensor) -> Tensor:
    """Score model, asked: its prediction of x_0 at x_t, [B, C, h, w] in fp32. No guidance on s_psi."""
    x_t = diffusion.noised(x0, t, eps)
    return diffusion.x0(network(x_t, t, embeds), x_t, t).float()


@torch.no_grad()
def predict_guided(
    network: Network,
    diffusion: Diffusion,
    x0: Tensor,
    embeds: PromptEmbeds,
    null: PromptEmbeds,
    t: Tensor,
    eps: Tensor,
    scale: float,
) -> Tensor:
    """Teacher: its guided prediction of x_0 at x_t, [B, C, h, w] in fp32; `null` holds the embeds of "" (one row)."""
    if scale == 1:
        return predict(network, diffusion, x0, embeds, t, eps)
    x_t = diffusion.noised(x0, t, eps)
    both = PromptEmbeds.concatenate(null.repeat(len(x0)), embeds)
    output = network(x_t.repeat(2, 1, 1, 1), t.repeat(2), both)
    unconditional, conditional = diffusion.x0(output, x_t.repeat(2, 1, 1, 1), t.repeat(2)).chunk(2)
    return guided(unconditional, conditional, scale).float()
