"""The one-step generator: the teacher's network read at one fixed time t*."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.schedule import FlowSchedule, per_sample
from dipp_ray.errors import UserError

Convention = Literal["unit", "sigma"]


@dataclass(frozen=True)
class OneStep:
    """x_0 = to_x0(network(input)), where the input is z (`unit`) or sigma_{t*} z (`sigma`).

    `unit` is DMD2's convention, `sigma` SiD-LSG's. A flow teacher is read at t* = T, where both coincide, because
    diffusers' flow scheduler always begins its one step there.
    """

    diffusion: Diffusion
    t_star: int
    convention: Convention

    def __post_init__(self):
        schedule = self.diffusion.schedule
        if isinstance(schedule, FlowSchedule):
            if self.t_star != schedule.num_timesteps:
                raise UserError(
                    f"model.t_star={self.t_star}: a flow-matching teacher can only be read at its end, where its "
                    f"one-step export begins: set model.t_star={schedule.num_timesteps}"
                )
        elif not 0 < self.t_star < schedule.num_timesteps:
            raise UserError(
                f"model.t_star={self.t_star} is outside the teacher's schedule: "
                f"choose 1 to {schedule.num_timesteps - 1}"
            )

    def times(self, z: Tensor) -> Tensor:
        """t* for every sample, [B] int64."""
        return torch.full((len(z),), self.t_star, dtype=torch.int64, device=z.device)

    def input(self, z: Tensor) -> Tensor:
        """What the network reads for latent noise z [B, C, h, w]."""
        if self.convention == "unit":
            return z
        _, sigma = self.diffusion.schedule.alpha_sigma(self.times(z))
        return (per_sample(sigma, z) * z.double()).to(z.dtype)

    def x0(self, output: Tensor, network_input: Tensor) -> Tensor:
        """The generated clean latents [B, C, h, w] in fp32, differentiable in the output."""
        return self.diffusion.x0(output, network_input, self.times(network_input)).float()
