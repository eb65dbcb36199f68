"""What Diff-Instruct++ must do on Gaussians, in fp64, written as formulas.

Generator x_0 = m + S z, z ~ N(0, I) in d dimensions; reference p_ref = N(mu, Sigma); averages over t ~ pi:
    V_t = alpha^2 Sigma + sigma^2 I,   U_t = alpha^2 S S^T + sigma^2 I,   A = E_t[ w alpha^2 V^-1 ]
    IKL = E_t[ w KL( N(alpha m, U) || N(alpha mu, V) ) ]
    dIKL/dm = A (m - mu),   dIKL/dS = E_t[ w alpha^2 (V^-1 - U^-1) ] S
Nothing here calls the mathematics of the package: only its types.
"""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from dipp_ray.diffusion.one_step import OneStep
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.diffusion.schedule import FlowSchedule, linear_vp, vp_from_betas

WEIGHTS = {
    "unit": lambda alpha, sigma: torch.ones_like(alpha),
    "sigma_squared": lambda alpha, sigma: sigma**2,
    "x0_difference": lambda alpha, sigma: (sigma / alpha) ** 2,
}


@dataclass(frozen=True)
class Frame:
    """A generator's and a teacher's frame, and pi: uniform on the times `t` [N]."""

    one_step: OneStep
    t: Tensor

    @property
    def diffusion(self) -> Diffusion:
        return self.one_step.diffusion

    def coefficients(self, weight: str) -> tuple[Tensor, Tensor, Tensor]:
        """(w, alpha, sigma), each [N, 1, 1], to average matrices over t."""
        schedule = self.diffusion.schedule
        if isinstance(schedule, FlowSchedule):
            sigma = self.t.double() / schedule.num_timesteps
            alpha = 1 - sigma
        else:
            alpha, sigma = schedule.alphas_cumprod[self.t].sqrt(), (1 - schedule.alphas_cumprod[self.t]).sqrt()
        return tuple(x[:, None, None] for x in (WEIGHTS[weight](alpha, sigma), alpha, sigma))


_scaled_linear = DDPMScheduler(beta_start=8.5e-4, beta_end=1.2e-2, beta_schedule="scaled_linear").betas
_vp_times = torch.arange(20, 980, 8)
FRAMES = {
    # The midpoint rule for t / T uniform on (.02, .98).
    "flow": Frame(
        OneStep(Diffusion(FlowSchedule(1000), "flow_prediction"), 1000, "unit"),
        20 + torch.arange(0.5, 960, dtype=torch.float64),
    ),
    "linear": Frame(OneStep(Diffusion(linear_vp(1e-4, 2e-2, 1000), "epsilon"), 440, "sigma"), _vp_times),
    "scaled_linear": Frame(OneStep(Diffusion(vp_from_betas(_scaled_linear), "v_prediction"), 625, "unit"), _vp_times),
}


@dataclass(frozen=True)
class Gaussian:
    mean: Tensor  # [d], or [B, d]: one mean a sample
    covariance: Tensor  # [d, d]

    def x0_given(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t] = mu + alpha Sigma V^-1 (x_t - alpha mu), [B, d] from x_t [B, d] and alpha, sigma [B]."""
        values, vectors = torch.linalg.eigh(self.covariance)
        a, s = alpha[:, None], sigma[:, None]
        centred = (x_t - a * self.mean) @ vectors
        return self.mean + (a * values / (a**2 * values + s**2) * centred) @ vectors.T


def output(kind: str, x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network of this kind says when it means x0; all [B, d], alpha and sigma [B]."""
    eps = (x_t - alpha[:, None] * x0) / sigma[:, None]
    v = alpha[:, None] * eps - sigma[:, None] * x0
    return {"epsilon": eps, "sample": x0, "v_prediction": v, "flow_prediction": eps - x0}[kind]


def exact_network(diffusion: Diffusion, gaussian_of):
    """A network that knows the exact score of the Gaussian `gaussian_of(embeds)`."""

    def network(x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        x, (alpha, sigma) = x_t.double().flatten(1), diffusion.schedule.alpha_sigma(t)
        return output(diffusion.kind, gaussian_of(embeds).x0_given(x, alpha, sigma), x, alpha, sigma).view_as(x_t)

    return network


def generator_network(one_step: OneStep, m: Tensor, S: Tensor):
    """A network whose one step is x_0 = m + S z."""

    def network(network_input: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        x, (alpha, sigma) = network_input.flatten(1), one_step.diffusion.schedule.alpha_sigma(t)
        z = x if one_step.convention == "unit" else x / sigma[:, None]
        return output(one_step.diffusion.kind, m + z @ S.T, x, alpha, sigma).view_as(network_input)

    return network


def cubature(t: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """(z, eps, t) whose plain mean is the expectation over z, eps ~ N(0, I) and t, exact to third degree in (z, eps).

    The points are +- sqrt(2d) along each axis of (z, eps). z and eps are [B, d, 1, 1].
    """
    axes = (2 * d) ** 0.5 * torch.eye(2 * d, dtype=torch.float64)
    points = torch.cat([axes, -axes]).repeat(len(t), 1)
    z, eps = points[:, :d, None, None], points[:, d:, None, None]
    return z, eps, t.repeat_interleave(4 * d)


def eye(d: int) -> Tensor:
    return torch.eye(d, dtype=torch.float64)


def mean_precision(frame: Frame, weight: str, covariance: Tensor) -> Tensor:
    """E_t[ w alpha^2 (alpha^2 C + sigma^2 I)^-1 ]: A for C = Sigma, and its twin for C = S S^T."""
    w, a, s = frame.coefficients(weight)
    return (w * a**2 * torch.linalg.inv(a**2 * covariance + s**2 * eye(len(covariance)))).mean(0)


def ikl(frame: Frame, weight: str, m: Tensor, S: Tensor, reference: Gaussian) -> Tensor:
    """The integral KL itself, from the KL between two Gaussians."""
    w, a, s = frame.coefficients(weight)
    d = len(m)
    U, V = a**2 * (S @ S.T) + s**2 * eye(d), a**2 * reference.covariance + s**2 * eye(d)
    shift = a[:, :, 0] * (m - reference.mean)
    trace = torch.linalg.solve(V, U).diagonal(dim1=1, dim2=2).sum(1)
    distance = (shift * torch.linalg.solve(V, shift)).sum(1)
    kl = (trace + distance - d + torch.logdet(V) - torch.logdet(U)) / 2
    return (w[:, 0, 0] * kl).mean()


def ikl_gradients(frame: Frame, weight: str, m: Tensor, S: Tensor, reference: Gaussian) -> tuple[Tensor, Tensor]:
    """dIKL/dm [d] and dIKL/dS [d, d] in closed form."""
    A = mean_precision(frame, weight, reference.covariance)
    return A @ (m - reference.mean), (A - mean_precision(frame, weight, S @ S.T)) @ S


def linear_optimum(A: Tensor, mu: Tensor, b: Tensor, reward_scale: float) -> Tensor:
    """m* for r = b . x; S* S*^T = Sigma."""
    return mu + reward_scale * torch.linalg.solve(A, b)


def quadratic_optimum(A: Tensor, mu: Tensor, K: Tensor, centre: Tensor, reward_scale: float) -> Tensor:
    """m* for r = -(x - c)^T K (x - c) / 2; S* solves E_t[ w alpha^2 (V^-1 - U^-1) ] + alpha_rew K = 0."""
    return torch.linalg.solve(A + reward_scale * K, A @ mu + reward_scale * K @ centre)


def collapse_bound(frame: Frame, weight: str, A: Tensor) -> float:
    """Largest alpha_rew k with an optimum for the quadratic reward, d = 1: E_t[ w alpha^2 / sigma^2 ] - A."""
    w, a, s = frame.coefficients(weight)
    return float((w * a**2 / s**2).mean() - A)
