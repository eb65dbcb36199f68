"""What is measured on a set of images: rewards, diversity within a prompt, colours, features, and what the judge says.

A measure is the mean of its units, one a sample or one a prompt, by which it has a 95 % interval; a judge that gives a
number alone gives it without one.
"""

import importlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dipp_ray.config import RunConfig
from dipp_ray.data.prompts import Prompts, read_prompts
from dipp_ray.errors import UserError
from dipp_ray.evaluation.colours import contrast, saturation
from dipp_ray.evaluation.features import FeatureNetwork
from dipp_ray.evaluation.frechet import Gaussian, frechet, gaussian_of
from dipp_ray.evaluation.kept import Measured
from dipp_ray.evaluation.pairs import pair_units, pairs_of
from dipp_ray.evaluation.rewards import ServiceScorer
from dipp_ray.reporting.differences import Difference, half_width, paired
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.serving.contract.records import ModelRecord
from dipp_ray.serving.core.scoring import Scorer

Judge = Callable[[Tensor, list[str]], dict[str, float | Sequence[float]]]
Units = dict[str, np.ndarray]  # fp64, [samples] or [prompts]; [] of a number that has none

IMAGES_A_PROMPT = 4  # at least, on average: diversity within a prompt is measured over pairs
LABELS: dict[str, tuple[str, str | None]] = {
    "diversity": ("Diversity within a prompt", "higher"),
    "clip_diversity": ("Diversity within a prompt, CLIP", "higher"),
    "saturation": ("Saturation", None),
    "contrast": ("Contrast", None),
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
    different: set[str] = set()
    for prompt in prompts:
        different.add(prompt)
        if len(different) * IMAGES_A_PROMPT > samples:
            prompts = Prompts.listed(prompts.first(max(1, samples // IMAGES_A_PROMPT)))
            break
    return prompts.first(samples)


def diversity(images: Tensor, prompts: list[str]) -> float:
    """Mean Euclidean distance over all pairs of images [B, 3, H, W] of one prompt; NaN where no prompt has two.

    Of all values of an image, in [0, sqrt(3 H W)].
    """
    units = diversity_units(images, prompts)
    return float(units.mean()) if len(units) else math.nan


def diversity_units(images: Tensor, prompts: list[str]) -> np.ndarray:
    """A value a prompt that has two images or more, in order of appearance, whose mean is the diversity."""
    return pair_units(pairs_of(images, prompts))


def measure(
    images: Tensor,
    prompts: list[str],
    scorer: Scorer | ServiceScorer | None,
    clip: FeatureNetwork | None,
    network: FeatureNetwork | None,
) -> Measured:
    """All measures of images [B, 3, H, W] in [0, 1] of whole prompts, but for the judge's."""
    measured = Measured()
    if scorer:
        scores = scorer.score(images, prompts, "images", gradient=False).scores
        measured.units |= {name: score.double().cpu().numpy() for name, score in scores.items()}
    measured.pairs["diversity"] = pairs_of(images, prompts)
    if clip:  # 1 - cos is half the square of unit features' distance
        pairs = pairs_of(torch.from_numpy(clip.features(images)), prompts, power=2.0)
        measured.pairs["clip_diversity"] = pairs * [0.5, 1.0]
    measured.units |= {"saturation": saturation(images), "contrast": contrast(images)}
    if network:
        measured.features = network.features(images)
    return measured


def joined(parts: list[Measured], reference: Gaussian | None) -> Units:
    """The units of all shards, one shard after the other: in the same order for each model."""
    units = {name: np.concatenate([part.units[name] for part in parts]) for name in parts[0].units}
    loud = {name: units.pop(name) for name in ("saturation", "contrast")}
    units |= {name: pair_units(np.concatenate([part.pairs[name] for part in parts])) for name in parts[0].pairs}
    if reference is not None:
        features = np.concatenate([part.features for part in parts])
        units["frechet"] = np.asarray(frechet(gaussian_of(features), reference))
    return units | loud


def means(units: Units) -> dict[str, float | None]:
    """{measure: mean}; null for one that is not finite, or of no unit."""
    values = {key: float(one.mean()) if one.size else math.nan for key, one in units.items()}
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def intervals(units: Units) -> dict[str, float]:
    """{measure: half the width of its mean's 95 % interval}, of those that have one."""
    found = {key: half_width(one) for key, one in units.items() if one.ndim}
    return {key: within for key, within in found.items() if within is not None}


def differences(before: Units, after: Units) -> dict[str, Difference]:
    """{measure: after minus before}, unit by unit: the same noises and prompts; of those that have units."""
    found = {key: paired(before[key], one) for key, one in after.items() if one.ndim and before[key].ndim}
    return {key: difference for key, difference in found.items() if difference is not None}


def about(keys: list[str], terms: list[RewardTerm] | list[ModelRecord]) -> dict[str, dict[str, str | None]]:
    """{key: {label, better, unit}} of every measure, for the table; `better` is null where nobody said."""
    rewards = {term.name: f"{'Held-out' if term.held_out else 'Trained'} reward, {term.name}" for term in terms}
    described = {}
    for key in keys:
        plain = (key.replace("_", " ").capitalize(), "higher" if key.endswith("accuracy") else None)
        label, better = (rewards[key], "higher") if key in rewards else LABELS.get(key, plain)
        described[key] = {"label": label, "better": better, "unit": UNITS.get(key, "")}
    return described
