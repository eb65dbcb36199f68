"""The generator's ranks: sample x_0, take back one tensor of its shape, step."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from dipp_ray.alignment.objective import Answers, RewardReply, feedback, surrogate
from dipp_ray.alignment.questions import generate
from dipp_ray.alignment.times import divergence_times
from dipp_ray.config import RunConfig
from dipp_ray.diffusion.noise import Draws
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.errors import NonFiniteError
from dipp_ray.roles.report import Report, Stopwatch
from dipp_ray.roles.trained import HEALTH, TrainedRank


@dataclass
class _Sampled:
    embeds: PromptEmbeds
    x0: Tensor | None  # with its graph, where graphs are kept


@ray.remote(concurrency_groups=HEALTH)
class GeneratorRank(TrainedRank):
    group = "generator"

    def __init__(self, config: RunConfig):
        super().__init__(config, config.roles.generator, config.generator_optim)
        # Several live graphs give wrong gradients at ZeRO 3, so there the forward runs again at the backward.
        self.keeps_graphs = self.role.zero_stage < 3 and not self.role.recompute
        self.sampled: dict[Draws, _Sampled] = {}

    def start(self) -> None:
        """The moving average begins at the starting weights."""
        self.engine.start_average()

    @ray.method(num_returns=2)
    def sample(self, draws: Draws, embeds, kept: bool) -> tuple[np.ndarray, Report]:
        """x_0 [b, C, h, w]; `kept` micro-batches are remembered until their backward."""
        watch = Stopwatch()
        embeds = self.embeds(embeds)
        graph = kept and self.keeps_graphs
        with torch.set_grad_enabled(graph):
            x0 = self._generate(draws, embeds)
        if kept:
            self.sampled[draws] = _Sampled(embeds, x0 if graph else None)
        return x0.detach().cpu().numpy(), watch.report()  # on a GPU the copy is what waits for the work

    @ray.method(num_returns=1)
    def backward(
        self, draws: Draws, x0_psi, x0_ref, reward: dict | None, reward_deviation: float, updates: bool
    ) -> Report:
        """Assemble g of the micro-batch from all answers and go backward; with `updates` the optimiser steps."""
        watch = Stopwatch()
        sampled = self.sampled.pop(draws)
        x0 = sampled.x0 if sampled.x0 is not None else self._generate(draws, sampled.embeds)
        t = divergence_times(self.objective, self.diffusion.schedule, draws).to(self.device)
        alpha, sigma = self.diffusion.schedule.alpha_sigma(t)
        answers = Answers(
            x0_psi=self.tensor(x0_psi), x0_ref=self.tensor(x0_ref), alpha=alpha, sigma=sigma, reward=self._reply(reward)
        )
        gradient, metrics = feedback(self.objective, x0, answers, reward_deviation)
        if not gradient.isfinite().all():
            raise NonFiniteError(f"generator, step {draws.step}: the gradient that came back for x0 is not finite")
        self.engine.backward(surrogate(x0, gradient), updates)
        for name in reward["failed"] if reward else ():
            metrics[f"reward_failed/{name}"] = 1.0
        if updates:
            metrics["grad_norm/generator"] = self.engine.step("generator", draws.step)
            self.engine.update_average(self.config.ema.decay)
        return watch.report(metrics)

    def sample_average(self, batches: list[tuple[Draws, Any]]) -> list[np.ndarray]:
        """x_0 of several micro-batches (draws, embeds) from the moving average's weights. All ranks together."""
        with self.engine.average_in_place(), torch.no_grad():
            return [self._generate(draws, self.embeds(embeds)).cpu().numpy() for draws, embeds in batches]

    def _generate(self, draws: Draws, embeds: PromptEmbeds) -> Tensor:
        return generate(self.engine, self.one_step, draws.normal("z", self.latent_shape).to(self.device), embeds)

    def _reply(self, reward: dict | None) -> RewardReply | None:
        if reward is None:
            return None
        return RewardReply(
            self.tensor(reward["reward"]),
            {name: self.tensor(score) for name, score in reward["scores"].items() if name not in reward["held_out"]},
            None if reward["gradient"] is None else self.tensor(reward["gradient"]),
            self.tensor(reward["finite"]),
        )
