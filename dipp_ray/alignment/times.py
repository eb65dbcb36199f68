"""pi_score(t) and pi_div(t): the two distributions of time of an objective, drawn by key."""

from torch import Tensor

from dipp_ray.alignment.hyperparameters import Objective
from dipp_ray.diffusion.noise import Draws
from dipp_ray.diffusion.schedule import Schedule
from dipp_ray.diffusion.times import draw_times


def score_times(objective: Objective, schedule: Schedule, draws: Draws) -> Tensor:
    """t [b] of score matching, on the CPU."""
    return draw_times(draws, "score_t", schedule, objective.score_times, objective.score_timesteps)


def divergence_times(objective: Objective, schedule: Schedule, draws: Draws) -> Tensor:
    """t [b] of the divergence, on the CPU: the same for the teacher, the score model and the generator."""
    return draw_times(draws, "divergence_t", schedule, objective.divergence_times, objective.divergence_timesteps)
