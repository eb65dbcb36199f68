"""`check --try`: each reward is built where it would run, and called on two images."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from dipp_ray.config import RoleSection, RunConfig
from dipp_ray.errors import CallError, UserError
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.pipeline import frame_of
from dipp_ray.reporting.quiet import quiet_libraries
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.roles.process import prepare
from dipp_ray.roles.waiting import wait_all
from dipp_ray.serving.core.scoring import ModelScorer
from dipp_ray.serving.deploy.application import replica_options
from dipp_ray.training.roles import call_rewards, start_actor

IMAGES = 2
AGAIN = "the same command tries it again"
# A row's score may differ by so much, of the largest, where it is scored alone: rounding, and no more.
ROWS_APART = 1e-3


@dataclass(frozen=True)
class Tried:
    """What a reward answered, or the sentence that says what is wrong with it."""

    name: str
    scores: tuple[float, ...] = ()
    gradient_norms: tuple[float, ...] = ()
    seconds: float = 0.0
    fault: str | None = None

    def __str__(self) -> str:
        if self.fault:
            return f"reward '{self.name}': {self.fault}"
        scores, norms = (", ".join(f"{value:.4g}" for value in values) for values in (self.scores, self.gradient_norms))
        slope = f"gradient of norm {norms}" if norms else "no gradient asked for"
        return f"reward '{self.name}': {scores} for {IMAGES} images, {slope}, {self.seconds:.1f} s"


def try_rewards(config: RunConfig, prompts: list[str], say: Callable[[str], None]) -> None:
    """Build each reward in an actor of its role's resources and say what it answers; a shared service is asked.

    Needs a connected Ray. Raises UserError where one cannot be used, after all have been tried.
    """
    if config.reward.shared:
        client, service = call_rewards(None, config, say)
        ray.kill(client)
        say(f"the reward service answers: {', '.join((service or {}).get('models', {})) or 'no models'}")
        return
    texts, shape = (prompts * IMAGES)[:IMAGES], frame_of(config.model).latent_shape
    faults = []
    for term in config.reward.terms:
        role = config.roles.reward
        actor = start_actor(Trial, replica_options(role), role, config.run.deterministic)
        gradient = config.objective.reward_scale > 0 and not term.held_out
        asked = actor.look.remote(term, config.model.teacher, shape, texts, gradient)
        (tried,) = wait_all([asked], f"reward '{term.name}'", config.roles.wait_s, say, AGAIN)
        ray.kill(actor)
        say(str(tried))
        faults += [tried.name] if tried.fault else []
    if faults:
        raise UserError(
            f"of {len(config.reward.terms)} rewards {', '.join(faults)} cannot be used: correct what is said"
        )


@ray.remote(max_restarts=0)
class Trial:
    def __init__(self, role: RoleSection, deterministic: bool):
        quiet_libraries()
        self.device = prepare(role, deterministic)
        self.autocast = torch.bfloat16 if role.dtype == "bf16" else None

    def look(self, term: RewardTerm, teacher: str, shape: tuple, prompts: list[str], gradient: bool) -> Tried:
        decoder = LatentDecoder.from_folder(teacher)
        latents = torch.randn(IMAGES, *shape, generator=torch.Generator().manual_seed(0))
        return tried(term, decoder, latents, prompts, gradient, self.device, self.autocast)


def tried(
    term: RewardTerm,
    decoder: LatentDecoder,
    latents: torch.Tensor,
    prompts: list[str],
    gradient: bool,
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> Tried:
    """The reward's answer about latents [2, C, h, w] and prompts, with what is wrong with it in one sentence."""
    began = time.perf_counter()
    try:
        scorer = ModelScorer(term, decoder, device, autocast)
        answer = scorer.answer(latents, prompts, "latents", gradient)
        rows = [(latents[i : i + 1], prompts[i : i + 1]) for i in range(IMAGES)]
        alone = [scorer.answer(*row, "latents", False).score[0] for row in rows]
    except (UserError, CallError) as error:
        return Tried(term.name, fault=str(error).removeprefix(f"reward '{term.name}': "))
    except Exception as error:  # whatever its author's code raises
        return Tried(term.name, fault=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{where(error)}")
    scores = tuple(answer.score.tolist())
    slopes = torch.from_numpy(answer.gradient).flatten(1).norm(dim=1) if answer.gradient is not None else torch.zeros(0)
    fault = None
    if not all(map(torch.isfinite, torch.tensor(scores))):
        fault = f"its scores are not finite: {list(scores)}"
    elif not slopes.isfinite().all():
        fault = "its gradient is not finite"
    elif gradient and not slopes.any():
        fault = "its gradient is 0 for both images: is the score rounded, or cut off by a bound?"
    elif max(abs(a - b) for a, b in zip(scores, alone, strict=True)) > ROWS_APART * max(1e-6, *map(abs, scores)):
        fault = f"a row depends on its companions: together {list(scores)}, alone {[float(a) for a in alone]}"
    return Tried(term.name, scores, tuple(slopes.tolist()), time.perf_counter() - began, fault)


def where(error: Exception) -> str:
    """File and line of the last frame outside the libraries, in brackets."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not {"site-packages", "dipp_ray"} & set(Path(frame.filename).parts)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
