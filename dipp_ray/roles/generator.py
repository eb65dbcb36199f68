"""The generator's ranks: sample x_0, take back one tensor of its shape, step."""

from dataclasses import dataclass

import numpy as np
import ray
import torch
from torch import Tensor

from dipp_ray.alignment.objective import Answers, RewardReply, feedback, surrogate
from dipp_ray.alignment.questions import generate
from dipp_ray.config import RunConfig
from dipp_ray.diffusion.noise import Draws
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.errors import NonFiniteError
from dipp_ray.roles.trained import TrainedRank, busy


@dataclass
class _Sampled:
    draws: Draws
    embeds: PromptEmbeds
    x0: Tensor | None  # with its graph, where graphs are kept


@ray.remote
class GeneratorRank(TrainedRank):
    group = "generator"

    def __init__(self, config: RunConfig, rank: int):
        super().__init__(config, config.roles.generator, config.generator_optim, rank)
        # Several live graphs give wrong gradients at ZeRO 3, so there the forward runs again at the backward.
        self.keeps_graphs = self.role.zero_stage < 3 and not self.role.recompute
        self.sampled: dict[int, _Sampled] = {}

    def start(self) -> None:
        """The moving average begins at the starting weights."""
        self.engine.start_average()

    @ray.method(num_returns=2)
    def sample(self, draws: Draws, embeds, trained: bool) -> tuple[np.ndarray, dict]:
        """x_0 [b, C, h, w]; `trained` micro-batches are remembered until their backward."""
        info = {}
        with busy(info):
            embeds = self.embeds(embeds)
            graph = trained and self.keeps_graphs
            with torch.set_grad_enabled(graph):
                x0 = self._generate(draws, embeds)
            if trained:
                self.sampled[draws.indices[0]] = _Sampled(draws, embeds, x0 if graph else None)
            array = x0.detach().cpu().numpy()  # inside: on a GPU the copy is what waits for the work
        return array, info

    @ray.method(num_returns=1)
    def backward(self, draws: Draws, x0_psi, x0_ref, reward: dict | None, reward_deviation: float) -> dict:
        """Assemble g of the micro-batch from all answers, go backward, and step after the update's last one."""
        info = {}
        with busy(info):
            sampled = self.sampled.pop(draws.indices[0])
            if sampled.draws != draws:
                raise RuntimeError(f"generator: {draws} was sent back, but {sampled.draws} was sampled")
            x0 = sampled.x0 if sampled.x0 is not None else self._generate(draws, sampled.embeds)
            alpha, sigma = self.diffusion.schedule.alpha_sigma(
                draws.integers("divergence_t", *self.objective.divergence_timesteps).to(self.device)
            )
            answers = Answers(
                x0_psi=self.tensor(x0_psi),
                x0_ref=self.tensor(x0_ref),
                alpha=alpha,
                sigma=sigma,
                reward=self._reply(reward),
            )
            gradient, measured = feedback(self.objective, x0, answers, reward_deviation)
            if not gradient.isfinite().all():
                raise NonFiniteError(f"generator, step {draws.step}: the gradient that came back for x0 is not finite")
            self.engine.backward(surrogate(x0, gradient))
            norm = self.engine.step("generator", draws.step)
            for name in reward["failed"] if reward else ():
                measured[f"reward_failed/{name}"] = 1.0
            if norm is not None:
                measured["grad_norm/generator"] = norm
                self.engine.update_average(self.config.ema.decay)
        return measured | info

    def sample_average(self, batches: list[tuple[Draws, tuple]]) -> list[np.ndarray]:
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
