"""Who samples and measures the models of an evaluation: one process, this one or a placed actor's."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dipp_ray.config import RunConfig
from dipp_ray.errors import UserError
from dipp_ray.evaluation.features import FeatureNetwork
from dipp_ray.evaluation.kept import Measured
from dipp_ray.evaluation.measure import Units, evaluation_prompts, load_judge, measure, spread
from dipp_ray.evaluation.pngs import from_picture, from_pngs, to_pngs
from dipp_ray.evaluation.reference import check_reference
from dipp_ray.evaluation.rewards import scorer_of
from dipp_ray.evaluation.sampling import sample_images
from dipp_ray.evaluation.settings import EvaluationSection, FeatureSettings
from dipp_ray.models.pipeline import device_of_this_process, frame_of, one_step_of_folder
from dipp_ray.models.plain_pipeline import load_pipeline
from dipp_ray.rewards.clip import clip_files, require_clip
from dipp_ray.rewards.pictures import PictureError

LARGEST_BATCH = 64


@dataclass(frozen=True)
class Shard:
    """What was made of one shard: its files, the seconds that their sampling took (0 of such as were there), what was
    measured, and what the rewards said meanwhile."""

    pngs: list[bytes]
    seconds: float
    measured: Measured
    said: list[str]


class Evaluates(Protocol):
    """One `Evaluator`, or several in their processes."""

    def prepare(self) -> list: ...
    def open(self, folder: str | Path) -> None: ...
    def each(self, method: str, calls: Iterable[tuple]) -> Iterator[tuple[int, Any]]:
        """(index of a call, what `method` gave for its arguments), as they are done."""
        ...

    def judged(self, pngs: list[bytes]) -> Units: ...


class Evaluator:
    """Samples of one model after the other, and what is measured on them.

    application: the run's own reward service where it still answers; None: a shared one's, or rewards loaded here.
    """

    def __init__(self, config: RunConfig, device: torch.device | None = None, application: str | None = None):
        self.config, self.application = config, application
        self.device = device or device_of_this_process()
        self.texts = texts_of(config)
        self.said: list[str] = []
        self.folder: str | Path = ""
        self.pipeline: Any = None

    def prepare(self) -> list:
        """Load judge, networks and rewards; returns the rewards' terms. Raises UserError where one is not there."""
        settings = self.config.evaluation
        self.judge = load_judge(settings.judge)
        self.clip = FeatureNetwork.load(clip_settings(settings.clip), self.device) if settings.clip else None
        self.network = FeatureNetwork.load(settings.features, self.device) if settings.features else None
        self.scorer = scorer_of(self.config, batch_of(self.config), self.device, self.said.append, self.application)
        return self.scorer.terms if self.scorer else []

    def open(self, folder: str | Path) -> None:
        """What is sampled from now on. It is loaded when the first image is asked for."""
        self.folder, self.pipeline = folder, None  # the one before need not lie beside it

    def each(self, method: str, calls: Iterable[tuple]) -> Iterator[tuple[int, Any]]:
        for index, arguments in enumerate(calls):
            yield index, getattr(self, method)(*arguments)

    def shard(self, numbers: list[int], pngs: list[bytes] | None) -> Shard:
        """Sample and measure the images with these numbers, or measure the files that were made of them."""
        texts, seconds = [self.texts[number] for number in numbers], 0.0
        if pngs is None:
            self._load()
            clock = time.perf_counter()
            images = sample_images(
                self.pipeline, texts, self.config.run.seed, *self.how, batch_of(self.config), numbers
            )
            seconds, pngs = time.perf_counter() - clock, to_pngs(images)
        measured = measure(from_pngs(pngs), texts, self.scorer, self.clip, self.network)
        said, self.said[:] = list(self.said), []
        return Shard(pngs, seconds, measured, said)

    def features_of(self, files: list[bytes]) -> np.ndarray:
        """Features [N, D] of pictures of any size."""
        assert self.network is not None
        try:
            pictures = [from_picture(file) for file in files]
        except PictureError as error:
            raise UserError(f"evaluation.features.images: one of its files {error}: remove it") from None
        alike = [torch.stack(list(some)) for _, some in groupby(pictures, lambda picture: picture.shape)]
        return np.concatenate([self.network.features(images) for images in alike])

    def judged(self, pngs: list[bytes]) -> Units:
        """What the judge says of all images."""
        if self.judge is None:
            return {}
        return {name: np.asarray(one, np.float64) for name, one in self.judge(from_pngs(pngs), self.texts).items()}

    def _load(self) -> None:
        """The pipeline of the model, and one image of it: the first call is slower."""
        if self.pipeline is not None:
            return
        self.pipeline = load_pipeline(self.folder, self.device, frame_of(self.config.model, self.folder))
        self.how = how_to_sample(self.folder, self.config)
        sample_images(self.pipeline, self.texts[:1], self.config.run.seed, 1 if self.how[0] == 1 else 2, self.how[1], 1)


def check_networks(settings: EvaluationSection) -> None:
    """Raise UserError where a network of the evaluation is not there, or not that of the statistics."""
    if settings.clip:
        require_clip(clip_files(settings.clip))
    check_reference(settings.features)


def clip_settings(folder: str) -> FeatureSettings:
    return FeatureSettings.model_construct(network=folder, size=None, mean=None, std=None)


def texts_of(config: RunConfig) -> list[str]:
    """The prompts of an evaluation, one an image."""
    return spread(evaluation_prompts(config), config.evaluation.samples)


def batch_of(config: RunConfig) -> int:
    """Images at a time: no more than a rank holds in training, for it runs at this size of image there."""
    return min(LARGEST_BATCH, config.micro_batch_size)


def how_to_sample(folder: str | Path, config: RunConfig) -> tuple[int, float | None]:
    """(steps, guidance scale) of a pipeline folder: one step of an exported generator, many guided ones of others.

    Raises UserError where those would be guided by less than 1, which no pipeline of diffusers does.
    """
    if one_step_of_folder(folder):
        return 1, None
    if config.teacher_guidance < 1:
        raise UserError(
            f"objective.guidance_scale={config.teacher_guidance:g}: the teacher is sampled by its pipeline, which "
            "guides from 1 on alone, and would be shown at 1 in silence: set evaluation.teacher_guidance=1"
        )
    return config.evaluation.teacher_steps, config.teacher_guidance
