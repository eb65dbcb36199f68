"""What is looked at now and then during training: samples from fixed noises, and the rewards on them."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray

from dipp_ray.config import RunConfig
from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.reporting.grid import save_grid
from dipp_ray.training.controller import Controller
from dipp_ray.training.shared_service import judge_of


@dataclass
class Watch:
    """Scores and pictures of the generator's moving average, always on the same prompts and noises."""

    config: RunConfig
    controller: Controller
    best: tuple[int, float] | None = None  # step and held-out reward
    falls: int = 0  # held-out rewards below the best, in a row

    def __post_init__(self):
        log, size = self.config.log, self.config.micro_batch_size
        count = max(log.samples, log.held_out_samples if self.controller.roles.reward else 0)
        self.prompts = self.controller.prompts.first(count)
        ranges = [range(i, min(i + size, count)) for i in range(0, count, size)]
        self.draws = [Draws(self.config.run.seed, EVALUATION, 0, indices) for indices in ranges]

    def look(self, step: int) -> dict[str, float]:
        """Held-out and trained rewards on the fixed samples (`held_out/name`), and the grid of this step as a PNG."""
        roles = self.controller.roles
        encoded = [roles.text.encode.remote([self.prompts[i] for i in draws.indices]) for draws in self.draws]
        batches = list(zip(self.draws, self.controller.wait(encoded, "text"), strict=True))
        x0 = np.concatenate(roles.generator.all("sample_average", batches)[0])
        shown = self.config.log.samples
        (images,) = self.controller.wait([roles.text.decode.remote(x0[:shown])], "decoding")
        columns = max(1, round(shown**0.5))
        save_grid(images, self.folder / f"step_{step:06d}.png", columns, self.prompts[:shown])
        return self._rewards(x0) if roles.reward else {}

    def _rewards(self, x0: np.ndarray) -> dict[str, float]:
        size = self.config.micro_batch_size
        starts = range(0, len(x0), size)
        asked = [
            self.controller.roles.reward.score.remote(x0[i : i + size], self.prompts[i : i + size], False)
            for i in starts
        ]
        self.controller.wait([told for _, told in asked], "held-out reward")
        replies = [ray.get(reply) for reply, _ in asked]
        held_out = {name for reply in replies for name in reply["held_out"]}
        scores: dict[str, list[np.ndarray]] = {}
        for reply in replies:
            for name, values in reply["scores"].items():
                scores.setdefault(name, []).append(values)
        # A model that failed for some of the batches has no mean over all samples.
        whole = {name: values for name, values in scores.items() if len(values) == len(replies)}
        means = {name: float(np.concatenate(values).mean()) for name, values in whole.items()}
        return {f"{'held_out' if name in held_out else 'watched'}/{name}": value for name, value in means.items()}

    @property
    def folder(self) -> Path:
        return self.config.path / "samples"

    def judge(self, step: int, seen: dict[str, float]) -> bool:
        """Remember the best held-out reward; answers whether this step is the best so far."""
        value = seen.get(f"held_out/{judge_of(self.controller.roles.service)}")
        if value is None or step == 0 or not math.isfinite(value):  # the start has no checkpoint that could be kept
            return False
        if self.best is None or value > self.best[1]:
            self.best, self.falls = (step, value), 0
            return True
        self.falls += 1
        return False

    @property
    def gives_up(self) -> bool:
        patience = self.config.log.stop_patience
        return patience > 0 and self.falls >= patience
