"""The times t at which a step looks at x_t: drawn by key, in the schedule's own steps, from a distribution on a range.

With tau = t / T in (0, 1) and logit(tau) = log(tau / (1 - tau)):
    uniform          tau is uniform
    logit_normal     logit(tau) is normal with `mean` and `std` (Stable Diffusion 3, Esser et al. 2024)
    shift s          tau' = s tau / (1 + (s - 1) tau) after either, so that logit(tau') = logit(tau) + log s (there too)
A range [low, high) truncates the shifted distribution. A draw is the inverse of its distribution function at one
uniform number, so that it costs one, whatever the range, and every role draws the same.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from dipp_ray.diffusion.noise import Draws, Purpose
from dipp_ray.diffusion.schedule import FlowSchedule, Schedule

Range = tuple[int, int]  # [low, high) in the schedule's steps


class Distribution(Protocol):
    """The settings of one: `alignment.hyperparameters.Times`."""

    @property
    def distribution(self) -> str: ...
    @property
    def shift(self) -> float: ...
    @property
    def mean(self) -> float: ...
    @property
    def std(self) -> float: ...
    @property
    def continuous(self) -> bool: ...


def draw_times(draws: Draws, purpose: Purpose, schedule: Schedule, settings: Distribution, limits: Range) -> Tensor:
    """t [b] for the samples of `draws`, on the CPU: int64 whole steps, or fp32 where `continuous` says so.

    A uniform distribution of whole steps is NumPy's own of integers, as it was when there was no other.
    """
    if settings.distribution == "uniform" and settings.shift == 1 and not settings.continuous:
        return draws.integers(purpose, *limits)
    return times_of(draws.uniform(purpose), schedule, settings, limits)


def times_of(u: Tensor, schedule: Schedule, settings: Distribution, limits: Range) -> Tensor:
    """t [n] at the probabilities u [n] in [0, 1), fp64, of the truncated distribution.

    Whole steps are int64 in low .. high - 1: step k holds the probability of [k, k + 1). Continuous ones are fp32 in
    low .. high, of a flow alone; a table of steps has no others (ValueError).
    """
    steps = schedule.num_timesteps
    if settings.continuous and not isinstance(schedule, FlowSchedule):
        raise ValueError("a schedule of betas is a table of whole steps: its times cannot be continuous")
    low, high = limits
    t = steps * _quantile(u.double(), settings, low / steps, high / steps)
    if settings.continuous:
        return t.float().clamp(low, high)
    return t.floor().long().clamp(low, high - 1)


def mass(schedule: Schedule, settings: Distribution, limits: Range) -> float:
    """The probability of the range under the distribution before it is truncated."""
    low, high = (edge / schedule.num_timesteps for edge in limits)
    if settings.distribution == "uniform":
        return _unshifted(high, settings.shift) - _unshifted(low, settings.shift)
    below, above = _normal_probabilities(settings, low, high)
    return float(above - below)


def _quantile(u: Tensor, settings: Distribution, low: float, high: float) -> Tensor:
    """tau [n] with P(tau' <= tau | low <= tau' < high) = u."""
    match settings.distribution:
        case "uniform":
            start, end = _unshifted(low, settings.shift), _unshifted(high, settings.shift)
            tau = start + u * (end - start)
            return settings.shift * tau / (1 + (settings.shift - 1) * tau)
        case "logit_normal":
            below, above = _normal_probabilities(settings, low, high)
            normal = torch.special.ndtri(below + u * (above - below))
            return torch.sigmoid(settings.mean + math.log(settings.shift) + settings.std * normal)
    raise ValueError(f"unknown distribution of times {settings.distribution}")


def _unshifted(tau: float, shift: float) -> float:
    """The inverse of tau' = s tau / (1 + (s - 1) tau)."""
    return tau / (shift - (shift - 1) * tau)


def _normal_probabilities(settings: Distribution, low: float, high: float) -> Tensor:
    """P(tau' <= low) and P(tau' <= high) of logit_normal, in fp64, which leaves 1e-7 of a range that holds 1e-9."""
    ends = torch.logit(torch.tensor([low, high], dtype=torch.float64))
    return torch.special.ndtr((ends - settings.mean - math.log(settings.shift)) / settings.std)
