"""Forward diffusions x_t = alpha_t x_0 + sigma_t eps, in fp64, with time in the steps of the teacher's training."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class VPSchedule:
    """Variance preserving: alpha_t^2 + sigma_t^2 = 1, from a table of alpha_t^2 (diffusers' `alphas_cumprod`)."""

    alphas_cumprod: Tensor = field(repr=False)  # [T], fp64

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), each [B] in fp64, for integer t [B] in 0 .. T-1."""
        alpha_squared = self.alphas_cumprod.to(t.device)[t]
        return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()


@dataclass(frozen=True)
class FlowSchedule:
    """Flow matching: alpha_t = 1 - t/T, sigma_t = t/T."""

    num_timesteps: int

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), each [B] in fp64, for t [B], integer or not, in 0 .. T."""
        sigma = t.double() / self.num_timesteps
        return 1 - sigma, sigma


Schedule = VPSchedule | FlowSchedule


def linear_vp(beta_start: float, beta_end: float, num_timesteps: int) -> VPSchedule:
    """The linear-beta schedule of DDPM (1e-4 .. 2e-2 over 1000)."""
    return vp_from_betas(torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64))


def vp_from_betas(betas: Tensor) -> VPSchedule:
    return VPSchedule((1 - betas.double()).cumprod(0))


def per_sample(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient [B] shaped to multiply x [B, ...]."""
    return coefficient.reshape(-1, *[1] * (x.ndim - 1))
