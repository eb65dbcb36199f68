"""The one-step generator: a network like the teacher's, read at one fixed time t*, in a frame of its own.

Its schedule and the meaning of its output may differ from the teacher's: what was distilled to predict x_0, or a flow,
says so here, and only here. The teacher and the score model keep the teacher's frame.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dipp_ray.diffusion.parameterisation import Parameterisation
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.schedule import FlowSchedule, per_sample
from dipp_ray.errors import UserError

Convention = Literal["unit", "sigma"]
FLOWS = ("flow_prediction", "negative_flow")


def generator_diffusion(teacher: Diffusion, prediction: Parameterisation | None) -> Diffusion:
    """The frame in which a generator is read whose output means `prediction`; None: what the teacher's means.

    A flow, eps - x_0 or its negative, is read in flow time, whatever the teacher's schedule is: x_0 = z - output, or
    z + output, at t = T. Raises UserError where a flow-matching teacher is to be read as something else, which no
    scheduler of its pipeline could export.
    """
    if prediction is None:
        return teacher
    if isinstance(teacher.schedule, FlowSchedule):
        if prediction != "flow_prediction":
            raise UserError(
                f"model.prediction={prediction}: a generator of a flow-matching teacher predicts the flow too, for its "
                "pipeline exports nothing else: set model.prediction=flow_prediction, or leave it out"
            )
        return teacher
    if prediction in FLOWS:
        return Diffusion(FlowSchedule(teacher.schedule.num_timesteps), prediction)
    return Diffusion(teacher.schedule, prediction)


def same_reading(first: Diffusion, second: Diffusion) -> bool:
    """Whether outputs mean the same in two frames of one teacher."""
    return first.kind == second.kind and type(first.schedule) is type(second.schedule)


@dataclass(frozen=True)
class OneStep:
    """x_0 = to_x0(network(input)), where the input is z (`unit`) or sigma_{t*} z (`sigma`).

    `diffusion` is the generator's own frame. `unit` is DMD2's convention, `sigma` SiD-LSG's. A flow is read at t* = T,
    where both coincide, because diffusers' flow scheduler always begins its one step there.
    """

    diffusion: Diffusion
    t_star: int
    convention: Convention

    def __post_init__(self):
        schedule = self.diffusion.schedule
        if isinstance(schedule, FlowSchedule):
            if self.t_star != schedule.num_timesteps:
                raise UserError(
                    f"model.t_star={self.t_star}: what predicts a flow can only be read at its end, where its "
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
