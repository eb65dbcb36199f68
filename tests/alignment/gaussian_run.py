"""Diff-Instruct++ on Gaussians by the package's own functions, with exact scores and quadrature for the expectation."""

import numpy as np
import scipy.optimize
import torch
from closed_forms import Frame, Gaussian, cubature, exact_network, generator_network
from torch import Tensor

from dipp_ray.alignment.hyperparameters import Objective
from dipp_ray.alignment.objective import divergence_gradient, generator_gradient, surrogate
from dipp_ray.alignment.questions import generate, predict, predict_guided
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds


def objective(weight: str, reduction: str = "sum", **settings) -> Objective:
    return Objective(weight=weight, divisor="none", reduction=reduction, **settings)


def reference_teacher(frame: Frame, reference: Gaussian):
    return exact_network(frame.diffusion, lambda embeds: reference)


def embeds_of(condition: Tensor, rows: int) -> PromptEmbeds:
    """A prompt's embeddings [rows, 1, 1 + d]: a flag that tells a prompt from the null prompt, and c."""
    return PromptEmbeds(torch.cat([condition.new_ones(1), condition]).expand(rows, 1, -1))


def training_gradient(
    frame: Frame, settings: Objective, m: Tensor, S: Tensor, teacher, reward_gradient, condition: Tensor
) -> tuple[Tensor, Tensor]:
    """(dL/dm, dL/dS) of the generator's surrogate, as a training step computes them; s_psi is the exact score.

    `reward_gradient` maps x_0 [B, d, 1, 1] to dr/dx_0. `condition` [d] is the prompt.
    """
    m, S = m.clone().requires_grad_(), S.clone().requires_grad_()
    z, eps, t = cubature(frame.t, len(m))
    embeds = embeds_of(condition, len(z))
    null = PromptEmbeds(torch.zeros_like(embeds.tokens[:1]))
    generator = Gaussian(m.detach(), (S @ S.T).detach())
    score = exact_network(frame.diffusion, lambda embeds: generator)

    x0 = generate(generator_network(frame.one_step, m, S), frame.one_step, z, embeds)
    x0_psi = predict(score, frame.diffusion, x0, embeds, t, eps)
    x0_ref = predict_guided(teacher, frame.diffusion, x0, embeds, null, t, eps, settings.guidance_scale)
    alpha, sigma = frame.diffusion.schedule.alpha_sigma(t)
    divergence = divergence_gradient(settings, x0, alpha, sigma, x0_psi=x0_psi, x0_ref=x0_ref)
    g = generator_gradient(divergence, reward_gradient(x0.detach()), settings.reward_scale)
    return torch.autograd.grad(surrogate(x0, g), (m, S))


def find_optimum(frame: Frame, settings: Objective, teacher, reward_gradient, start_m: Tensor, condition=None):
    """(m*, S*), S lower triangular, where the training gradient vanishes: by root finding, from S = I."""
    d = len(start_m)
    condition = torch.zeros_like(start_m) if condition is None else condition
    rows, columns = np.tril_indices(d)

    def parameters(theta):
        S = torch.zeros(d, d, dtype=torch.float64)
        S[rows, columns] = torch.tensor(theta[d:])
        return torch.tensor(theta[:d]), S

    def gradient(theta):
        in_m, in_S = training_gradient(frame, settings, *parameters(theta), teacher, reward_gradient, condition)
        return np.concatenate([in_m.numpy(), in_S.numpy()[rows, columns]])

    start = np.concatenate([start_m.numpy(), np.eye(d)[rows, columns]])
    # x_0 travels in fp32: differences are taken over 1e-3 and not over 1e-8.
    found = scipy.optimize.root(gradient, start, method="hybr", options={"eps": 1e-6, "xtol": 1e-7})
    assert np.abs(found.fun).max() < 1e-5, found.message
    return parameters(found.x)
