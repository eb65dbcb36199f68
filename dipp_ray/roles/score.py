"""The online score model's ranks: learn the generator's distribution, and predict x0_psi."""

import numpy as np
import ray

from dipp_ray.alignment.questions import predict, score_loss
from dipp_ray.alignment.times import divergence_times, score_times
from dipp_ray.config import RunConfig
from dipp_ray.diffusion.noise import Draws
from dipp_ray.errors import NonFiniteError
from dipp_ray.models.adapters import adapter_off
from dipp_ray.roles.report import Report, Stopwatch
from dipp_ray.roles.teacher import guided_x0
from dipp_ray.roles.trained import HEALTH, TrainedRank


@ray.remote(concurrency_groups=HEALTH)
class ScoreRank(TrainedRank):
    group = "score"

    def __init__(self, config: RunConfig):
        super().__init__(config, config.roles.score, config.score_optim)

    def train(self, draws: Draws, x0, embeds, updates: bool) -> Report:
        """Score matching on one micro-batch of x_0 [b, C, h, w]; with `updates` the optimiser steps."""
        watch = Stopwatch()
        t = score_times(self.objective, self.diffusion.schedule, draws).to(self.device)
        eps = draws.normal("score_eps", self.latent_shape).to(self.device)
        loss = score_loss(
            self.engine, self.diffusion, self.tensor(x0), self.embeds(embeds), t, eps, self.objective.score_weight
        )
        if not loss.isfinite():
            raise NonFiniteError(f"score model, step {draws.step}: the score-matching loss is not finite")
        self.engine.backward(loss, updates)
        metrics = {"score_loss": loss.item()}
        if updates:
            metrics["grad_norm/score"] = self.engine.step("score model", draws.step)
        return watch.report(metrics)

    @ray.method(num_returns=2)
    def predict(self, draws: Draws, x0, embeds) -> tuple[np.ndarray, Report]:
        """x0_psi [b, C, h, w] at the divergence's x_t."""
        watch = Stopwatch()
        t = divergence_times(self.objective, self.diffusion.schedule, draws).to(self.device)
        eps = draws.normal("divergence_eps", self.latent_shape).to(self.device)
        x0_psi = predict(self.engine, self.diffusion, self.tensor(x0), self.embeds(embeds), t, eps)
        return x0_psi.cpu().numpy(), watch.report()

    @ray.method(num_returns=2)
    def guide(self, draws: Draws, x0, embeds, null) -> tuple[np.ndarray, Report]:
        """The teacher's question, answered without the adapter: see `Teacher.guide`."""
        watch = Stopwatch()
        with adapter_off(self.engine.engine.module):
            return guided_x0(self, self.engine, draws, x0, embeds, null), watch.report()
