"""Who samples and measures the models of an evaluation: one process, this one or a placed actor's."""

import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dipp_ray.config import RunConfig
from dipp_ray.evaluation.measure import Units, evaluation_prompts, load_judge, measure, spread
from dipp_ray.evaluation.rewards import scorer_of
from dipp_ray.evaluation.sampling import sample_images
from dipp_ray.models.pipeline import device_of_this_process, frame_of, one_step_of_folder
from dipp_ray.models.plain_pipeline import load_pipeline

LARGEST_BATCH = 64


class Evaluates(Protocol):
    """An `Evaluator`, in whichever process."""

    def prepare(self) -> list: ...
    def open(self, folder: str | Path) -> None: ...
    def sample(self, start: int, stop: int) -> float: ...
    def measures(self, picked: list[int]) -> tuple[Units, Tensor, list[str]]: ...


class Evaluator:
    """Samples of one model after the other, and what is measured on them.

    application: the run's own reward service where it still answers; None: a shared one's, or rewards loaded here.
    """

    def __init__(self, config: RunConfig, device: torch.device | None = None, application: str | None = None):
        self.config, self.application = config, application
        self.device = device or device_of_this_process()
        self.texts = texts_of(config)
        self.said: list[str] = []
        self.pipeline: Any = None
        self.images: list[Tensor] = []

    def prepare(self) -> list:
        """Load judge and rewards; returns the rewards' terms. Raises UserError where one is not there."""
        self.judge = load_judge(self.config.evaluation.judge)
        self.scorer = scorer_of(self.config, batch_of(self.config), self.device, self.said.append, self.application)
        return self.scorer.terms if self.scorer else []

    def open(self, folder: str | Path) -> None:
        """Load the pipeline of the next model, and sample one image: the first call is slower."""
        self.pipeline, self.images = None, []  # the one before need not lie beside it
        self.pipeline = load_pipeline(folder, self.device, frame_of(self.config.model, folder))
        self.how = how_to_sample(folder, self.config)
        sample_images(self.pipeline, self.texts[:1], self.config.run.seed, 1 if self.how[0] == 1 else 2, self.how[1], 1)

    def sample(self, start: int, stop: int) -> float:
        """Sample the images start .. stop - 1, which follow those sampled before; returns the seconds it took."""
        clock = time.perf_counter()
        batch = max(1, stop - start)
        self.images.append(
            sample_images(self.pipeline, self.texts[start:stop], self.config.run.seed, *self.how, batch, first=start)
        )
        return time.perf_counter() - clock

    def measures(self, picked: list[int]) -> tuple[Units, Tensor, list[str]]:
        """All measures of the model's images, those images that are `picked`, and what rewards said meanwhile."""
        images = torch.cat(self.images)
        units = measure(images, self.texts, self.scorer, self.judge)
        said, self.said[:] = list(self.said), []
        return units, images[picked], said


def texts_of(config: RunConfig) -> list[str]:
    """The prompts of an evaluation, one an image."""
    return spread(evaluation_prompts(config), config.evaluation.samples)


def batch_of(config: RunConfig) -> int:
    """Images at a time: no more than a rank holds in training, for it runs at this size of image there."""
    return min(LARGEST_BATCH, config.micro_batch_size)


def how_to_sample(folder: str | Path, config: RunConfig) -> tuple[int, float]:
    """(steps, guidance scale) of a pipeline folder: one step of an exported generator, many guided ones of others."""
    return (1, 0.0) if one_step_of_folder(folder) else (config.evaluation.teacher_steps, config.teacher_guidance)
