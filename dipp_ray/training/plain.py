"""The plain loop: Diff-Instruct++ in one process, with torch alone. Every Ray run is measured against it.

It reads as Algorithm 1 and calls the same functions as the roles do, with the same keyed noise.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from dipp_ray.alignment.hyperparameters import Optimiser
from dipp_ray.alignment.objective import Answers, RewardReply, feedback, surrogate
from dipp_ray.alignment.questions import generate, predict, predict_guided, score_loss
from dipp_ray.alignment.times import divergence_times, score_times
from dipp_ray.alignment.updates import ema_update, learning_rate, mean_of
from dipp_ray.config import RunConfig
from dipp_ray.data.embeddings import Embeddings
from dipp_ray.data.prompts import Prompts
from dipp_ray.diffusion.noise import SCORE_WARMUP, Draws
from dipp_ray.diffusion.one_step import OneStep
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.errors import NonFiniteError, UserError
from dipp_ray.models.denoiser import Denoiser
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.pipeline import frame_of, load_denoiser
from dipp_ray.models.reading import one_step_of_model, settle
from dipp_ray.models.start import starting_network
from dipp_ray.models.text import TextEncoder
from dipp_ray.serving.core.scoring import Scorer

Reward = Callable[[Tensor, list[str]], RewardReply]


class Trained:
    """A network with its optimiser: accumulate, clip, step."""

    def __init__(self, network: Denoiser, optim: Optimiser):
        self.network, self.optim, self.updates = network, optim, 0
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
        )

    def step(self) -> float:
        """One update from the accumulated gradient; returns its norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optim, self.updates)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.optim.grad_clip or float("inf"))
        if not norm.isfinite():
            raise NonFiniteError(f"the gradient of update {self.updates} is not finite")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        return norm.item()


class PlainLoop:
    def __init__(
        self,
        config: RunConfig,
        one_step: OneStep,
        generator: Denoiser,
        score: Denoiser,
        teacher: Denoiser,
        text: TextEncoder | Embeddings,
        prompts: Prompts,
        reward: Reward | None,
        diffusion: Diffusion,
        latent_shape: tuple[int, int, int],
        reward_deviation: float = 1.0,
    ):
        self.config, self.objective, self.one_step = config, config.objective, one_step
        self.diffusion = diffusion  # the teacher's and the score model's; the generator's is in one_step
        self.generator = Trained(generator, config.generator_optim)
        self.score = Trained(score, config.score_optim)
        self.teacher, self.text, self.prompts, self.reward = teacher, text, prompts, reward
        self.latent_shape, self.reward_deviation = latent_shape, reward_deviation
        self.null = text.null.to("cpu", torch.float32) if isinstance(text, Embeddings) else text([""])
        self.average = copy.deepcopy(generator.state_dict())
        for i in range(config.init.score_warmup_steps):
            self.train_score([self.sample(draws, False) for draws in self.micro_batches(SCORE_WARMUP, i)])

    def step(self, step: int) -> dict[str, float]:
        """One generator update with its K_TA score updates, in the configured order; returns what it measured."""
        last = self.objective.score_updates - 1
        repeats = [
            [self.sample(draws, graph=k == last) for draws in self.micro_batches(step, k)] for k in range(last + 1)
        ]
        if self.objective.order == "strict":
            score_metrics = [self.train_score(batch) for batch in repeats]
            answers = [self.ask_score(*sample) for sample in repeats[last]]
        else:
            answers = [self.ask_score(*sample) for sample in repeats[last]]
            score_metrics = [self.train_score(batch) for batch in repeats]
        return mean_of(score_metrics) | self.train_generator(repeats[last], answers)

    def micro_batches(self, step: int, repeat: int) -> list[Draws]:
        size = self.config.micro_batch_size
        starts = range(0, self.config.data.batch_size, size)
        return [Draws(self.config.run.seed, step, repeat, range(start, start + size)) for start in starts]

    def sample(self, draws: Draws, graph: bool):
        prompts = self.prompts.of(draws)
        embeds = self.embeds(draws, prompts)
        with torch.set_grad_enabled(graph):
            z = draws.normal("z", self.latent_shape)
            x0 = generate(self.generator.network, self.one_step, z, embeds)
        return draws, prompts, embeds, x0

    def embeds(self, draws: Draws, prompts: list[str]) -> PromptEmbeds:
        if isinstance(self.text, Embeddings):
            return self.text.at(self.prompts.rows(draws)).to("cpu", torch.float32)
        return self.text(prompts)

    def train_score(self, batch) -> dict[str, float]:
        losses = []
        for draws, _, embeds, x0 in batch:
            t = score_times(self.objective, self.diffusion.schedule, draws)
            eps = draws.normal("score_eps", self.latent_shape)
            loss = score_loss(
                self.score.network, self.diffusion, x0.detach(), embeds, t, eps, self.objective.score_weight
            )
            (loss / len(batch)).backward()
            losses.append(loss.item())
        return {"score_loss": sum(losses) / len(losses), "grad_norm/score": self.score.step()}

    def ask_score(self, draws: Draws, prompts, embeds, x0) -> Tensor:
        return predict(self.score.network, self.diffusion, x0.detach(), embeds, *self.divergence_draws(draws))

    def divergence_draws(self, draws: Draws) -> tuple[Tensor, Tensor]:
        t = divergence_times(self.objective, self.diffusion.schedule, draws)
        return t, draws.normal("divergence_eps", self.latent_shape)

    def train_generator(self, batch, answers: list[Tensor]) -> dict[str, float]:
        measured = []
        for (draws, prompts, embeds, x0), x0_psi in zip(batch, answers, strict=True):
            t, eps = self.divergence_draws(draws)
            x0_ref = predict_guided(
                self.teacher, self.diffusion, x0.detach(), embeds, self.null, t, eps, self.objective.guidance_scale
            )
            reply = self.reward(x0.detach(), prompts) if self.reward else None
            alpha, sigma = self.diffusion.schedule.alpha_sigma(t)
            said = Answers(x0_psi=x0_psi, x0_ref=x0_ref, alpha=alpha, sigma=sigma, reward=reply)
            gradient, values = feedback(self.objective, x0, said, self.reward_deviation)
            (surrogate(x0, gradient) / len(batch)).backward()
            measured.append(values)
        norm = self.generator.step()
        for name, value in self.generator.network.state_dict().items():
            ema_update(self.average[name], value, self.config.ema.decay)
        return mean_of(measured) | {"grad_norm/generator": norm}


def plain_loop(config: RunConfig, prompts: Prompts) -> PlainLoop:
    """The plain loop of a configuration, on the CPU: the networks and rewards that the roles would load.

    Raises UserError for what only the Ray pipeline does: a score model from a checkpoint, standardised rewards.
    """
    if config.init.score_checkpoint or config.reward.standardise:
        raise UserError("the plain loop knows neither init.score_checkpoint nor reward.standardise: leave them out")
    teacher, stored = config.model.teacher, config.data.embeddings
    frame = frame_of(config.model)
    config = config.model_copy(update={"model": settle(config.model, frame)})
    return PlainLoop(
        config,
        one_step_of_model(frame, config.model),
        starting_network(config, "generator", frame),
        starting_network(config, "score", frame),
        load_denoiser(teacher, config.roles.teacher.dtype, weights=config.roles.teacher.dtype, frame=frame),
        Embeddings(stored) if stored is not None else TextEncoder(teacher, torch.device("cpu"), frame=frame),
        prompts,
        local_reward(config) if config.objective.reward_scale > 0 else None,
        frame.diffusion,
        frame.latent_shape,
    )


def local_reward(config: RunConfig) -> Reward:
    """The configured rewards in this process, behind the teacher's decoder."""
    scorer = Scorer(config.reward.terms, LatentDecoder.from_folder(config.model.teacher), config.micro_batch_size)

    def reward(x0: Tensor, prompts: list[str]) -> RewardReply:
        reply = scorer.score(x0, prompts, "latents", gradient=True)
        assert reply.gradient is not None, "it was asked for"
        finite = reply.reward.isfinite() & reply.gradient.flatten(1).isfinite().all(1)
        if config.reward.on_nonfinite == "raise" and not finite.all():
            raise NonFiniteError(f"the reward or its gradient is not finite for {int((~finite).sum())} samples")
        return RewardReply(reply.reward, reply.scores, reply.gradient, finite)

    return reward
