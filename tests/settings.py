"""Configurations for tests: a few steps on the tiny pipelines."""

from pathlib import Path

import torch

from dipp_ray.config import RunConfig
from dipp_ray.settings import apply_override, validate


class InkReward(torch.nn.Module):
    """A smooth reward that likes dark images whose brightness fits the prompt's length."""

    def __init__(self, folder=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 64).reshape(8, 8), requires_grad=False)

    def reward(self, images, prompts):
        lengths = torch.tensor([len(prompt) / 10 for prompt in prompts], device=images.device)
        return (images.mean(1) * self.weight).sum((1, 2)).sin() - (images.mean((1, 2, 3)) - lengths).square()


class BrokenReward(InkReward):
    """Not finite for prompts about a two or a three."""

    def reward(self, images, prompts):
        broken = torch.tensor(["two" in prompt or "three" in prompt for prompt in prompts])
        return super().reward(images, prompts).where(~broken, torch.nan)


def tiny_config(folder: Path, pipeline: Path, prompts: Path, *overrides: str) -> RunConfig:
    """Alignment of the tiny pipeline: 8 samples a step in 4 micro-batches, CPU, one rank each."""
    data = {
        "run": {"name": "tiny", "folder": str(folder), "steps": 20, "seed": 7},
        "model": {"teacher": str(pipeline), "t_star": 440},
        "data": {"prompts": str(prompts), "batch_size": 8, "micro_batches": 4},
        "objective": {"reward_scale": 2.0},
        "generator_optim": {"lr": 1e-3, "grad_clip": 10.0},
        "score_optim": {"lr": 2e-3, "grad_clip": 10.0},
        "reward": {"terms": [{"name": "ink", "model": "settings:InkReward"}]},
        "checkpoint": {"every": 10},
        "log": {"samples_every": 10, "samples": 4, "held_out_samples": 8},
    }
    for override in overrides:
        apply_override(data, override)
    return validate(data, RunConfig, "test")
