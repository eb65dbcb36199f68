"""A diffusion model's frame: its forward process and what its network predicts."""

from dataclasses import dataclass

from torch import Tensor

from dipp_ray.diffusion.parameterisation import Parameterisation, to_epsilon, to_x0
from dipp_ray.diffusion.schedule import Schedule, per_sample


@dataclass(frozen=True)
class Diffusion:
    schedule: Schedule
    kind: Parameterisation

    def noised(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps, [B, ...] in x0's dtype; t [B]."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return (per_sample(alpha, x0) * x0.double() + per_sample(sigma, x0) * eps.double()).to(x0.dtype)

    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The prediction of x_0 in a network's output, [B, ...] in fp64."""
        return to_x0(self.kind, output, x_t, *self.schedule.alpha_sigma(t))

    def epsilon(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The prediction of eps in a network's output, [B, ...] in fp64."""
        return to_epsilon(self.kind, output, x_t, *self.schedule.alpha_sigma(t))
