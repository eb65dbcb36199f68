"""What a network's output means, and the way from it to x_0 and eps.

All functions take the output and x_t [B, ...] and alpha, sigma [B] in fp64, and return fp64: eps -> x_0 divides
by alpha, which is 6e-3 at the end of a VP schedule, so fp32 would lose the digits that the divergence needs.
With v = alpha eps - sigma x_0 and flow = eps - x_0 they hold on every schedule: alpha^2 + sigma^2 is 1 only on a VP
schedule, alpha + sigma only on a flow.
"""

from typing import Literal, get_args

from torch import Tensor

from dipp_ray.diffusion.schedule import per_sample

# diffusers' names of `prediction_type`; flow_prediction is eps - x_0, of rectified flows.
SchedulerPrediction = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
PARAMETERISATIONS = get_args(SchedulerPrediction)
# Beside them, known to no scheduler of diffusers: x_0 - eps, the way from noise to data (InstaFlow).
Parameterisation = Literal["epsilon", "sample", "v_prediction", "flow_prediction", "negative_flow"]


def to_x0(kind: Parameterisation, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The prediction of x_0 [B, ...]."""
    output, x_t, a, s = output.double(), x_t.double(), per_sample(alpha, x_t), per_sample(sigma, x_t)
    match kind:
        case "epsilon":
            return (x_t - s * output) / a
        case "sample":
            return output
        case "v_prediction":
            return (a * x_t - s * output) / (a**2 + s**2)
        case "flow_prediction":
            return (x_t - s * output) / (a + s)
        case "negative_flow":
            return (x_t + s * output) / (a + s)
    raise ValueError(f"unknown parameterisation {kind}")


def to_epsilon(kind: Parameterisation, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The prediction of eps [B, ...]."""
    output, x_t, a, s = output.double(), x_t.double(), per_sample(alpha, x_t), per_sample(sigma, x_t)
    match kind:
        case "epsilon":
            return output
        case "sample":
            return (x_t - a * output) / s
        case "v_prediction":
            return (s * x_t + a * output) / (a**2 + s**2)
        case "flow_prediction":
            return (x_t + a * output) / (a + s)
        case "negative_flow":
            return (x_t - a * output) / (a + s)
    raise ValueError(f"unknown parameterisation {kind}")


def from_x0(kind: Parameterisation, x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The output that a network of this kind would give for a prediction x0 [B, ...]: the inverse of `to_x0`."""
    x0, x_t, a, s = x0.double(), x_t.double(), per_sample(alpha, x_t), per_sample(sigma, x_t)
    epsilon = (x_t - a * x0) / s
    match kind:
        case "epsilon":
            return epsilon
        case "sample":
            return x0
        case "v_prediction":
            return a * epsilon - s * x0
        case "flow_prediction":
            return epsilon - x0
        case "negative_flow":
            return x0 - epsilon
    raise ValueError(f"unknown parameterisation {kind}")


def score_of_x0(x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """s = (alpha x0 - x_t) / sigma^2, the score that belongs to a prediction of x_0 [B, ...]."""
    a, s = per_sample(alpha, x_t), per_sample(sigma, x_t)
    return (a * x0.double() - x_t.double()) / s**2
