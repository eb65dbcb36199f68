"""What is measured on a set of images: rewards, diversity within a prompt, and whatever the judge says."""

import importlib
import math
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from dipp_ray.config import RunConfig
from dipp_ray.data.prompts import Prompts, read_prompts
from dipp_ray.errors import UserError
from dipp_ray.evaluation.rewards import ServiceScorer
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.serving.contract.records import ModelRecord
from dipp_ray.serving.core.scoring import Scorer

Judge = Callable[[Tensor, list[str]], dict[str, float]]

IMAGES_A_PROMPT = 4  # at least, on average: diversity within a prompt is measured over pairs
LABELS = {
    "diversity": ("Diversity within a prompt", "higher"),
    "frechet": ("Fréchet distance", "lower"),
    "images_per_second": ("Speed", "higher"),
}
UNITS = {"images_per_second": "images/s"}


def load_judge(name: str | None) -> Judge | None:
    """The function `package.module:function` of (images [B, 3, H, W] in [0, 1], B prompts), or None for None.

    Raises UserError where there is no such function.
    """
    if name is None:
        return None
    module, separator, function = name.partition(":")
    if not separator or not module or not function:
        raise UserError(f"evaluation.judge '{name}' is not of the form package.module:function")
    try:
        judge = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise UserError(f"evaluation.judge '{name}': {error}: correct it, or install what it needs") from None
    except AttributeError:
        raise UserError(f"evaluation.judge '{name}': module {module} has no function {function}") from None
    if not callable(judge):
        raise UserError(f"evaluation.judge '{name}' is no function")
    return judge


def evaluation_prompts(config: RunConfig) -> Prompts:
    """The prompts of evaluation.prompts, or those of training. Raises UserError as read_prompts does."""
    if config.evaluation.prompts is None:
        return read_prompts(config.data.prompts, config.data.column)
    return read_prompts(config.evaluation.prompts, config.data.column, "evaluation.prompts")


def spread(prompts: Prompts, samples: int) -> list[str]:
    """`samples` prompts spread evenly over the file, as often as they stand there, each several times.

    A file with too many different prompts for that is thinned to evenly spread rows.
    """
    if len(set(prompts.texts)) * IMAGES_A_PROMPT > samples:
        prompts = Prompts(tuple(prompts.first(max(1, samples // IMAGES_A_PROMPT))))
    return prompts.first(samples)


def diversity(images: Tensor, prompts: list[str]) -> float:
    """Mean Euclidean distance over all pairs of images [B, 3, H, W] of one prompt; NaN where no prompt has two.

    Of all values of an image, in [0, sqrt(3 H W)].
    """
    rows = defaultdict(list)
    for i, prompt in enumerate(prompts):
        rows[prompt].append(i)
    flat = images.flatten(1)
    distances = torch.cat([torch.nn.functional.pdist(flat[same]) for same in rows.values()])
    return distances.double().mean().item() if len(distances) else math.nan


def measure(
    images: Tensor, prompts: list[str], scorer: Scorer | ServiceScorer | None, judge: Judge | None
) -> dict[str, float | None]:
    """All measures of images [B, 3, H, W] in [0, 1]; null for one that is not finite. The judge's own names win."""
    values = {}
    if scorer:
        scores = scorer.score(images, prompts, "images", gradient=False).scores
        values = {name: score.double().mean().item() for name, score in scores.items()}
    values["diversity"] = diversity(images, prompts)
    if judge:
        values |= {name: float(value) for name, value in judge(images, prompts).items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def about(keys: list[str], terms: list[RewardTerm] | list[ModelRecord]) -> dict[str, dict[str, str | None]]:
    """{key: {label, better, unit}} of every measure, for the table; `better` is null where nobody said."""
    rewards = {term.name: f"{'Held-out' if term.held_out else 'Trained'} reward, {term.name}" for term in terms}
    described = {}
    for key in keys:
        plain = (key.replace("_", " ").capitalize(), "higher" if key.endswith("accuracy") else None)
        label, better = (rewards[key], "higher") if key in rewards else LABELS.get(key, plain)
        described[key] = {"label": label, "better": better, "unit": UNITS.get(key, "")}
    return described
