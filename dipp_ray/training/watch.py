"""What is looked at now and then during training: samples from fixed noises, and the rewards on them."""

from dataclasses import dataclass

import numpy as np

from dipp_ray.config import RunConfig
from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.reporting.grid import save_grid
from dipp_ray.reporting.metrics import grid_of
from dipp_ray.training.controller import Controller
from dipp_ray.training.looks import Look


@dataclass(frozen=True)
class Seen:
    """What a look saw: `values` for the metrics, and the held-out models' looks by name, those that are finite."""

    values: dict[str, float]
    looks: dict[str, Look]


@dataclass
class Watch:
    """Scores and pictures of the generator's moving average, always on the same prompts and noises."""

    config: RunConfig
    controller: Controller

    def __post_init__(self):
        log, size = self.config.log, self.config.micro_batch_size
        count = max(log.samples, log.held_out_samples if self.controller.roles.reward else 0)
        self.rows = self.controller.prompts.spread(count)
        self.prompts = self.controller.prompts.at(self.rows)
        ranges = [range(i, min(i + size, count)) for i in range(0, count, size)]
        self.draws = [Draws(self.config.run.seed, EVALUATION, 0, indices) for indices in ranges]

    def look(self, step: int) -> Seen:
        """Held-out and trained rewards on the fixed samples (`held_out/name`), and the grid of this step as a PNG."""
        encoded = self.controller.encoded([[self.rows[i] for i in draws.indices] for draws in self.draws])
        batches = list(zip(self.draws, encoded, strict=True))
        x0 = np.concatenate(self.controller.together("generator", "sample_average", batches)[0])
        shown = self.config.log.samples
        (images,) = self.controller.together("text", "decode", x0[:shown])
        columns = max(1, round(shown**0.5))
        save_grid(images, grid_of(self.config.path, step), columns, self.prompts[:shown])
        return self._rewards(step, x0) if self.controller.roles.reward else Seen({}, {})

    def _rewards(self, step: int, x0: np.ndarray) -> Seen:
        size = self.config.micro_batch_size
        starts = range(0, len(x0), size)
        replies = self.controller.rewards([(x0[i : i + size], self.prompts[i : i + size]) for i in starts])
        held_out = {name for reply in replies for name in reply["held_out"]}
        scores: dict[str, list[np.ndarray]] = {}
        for reply in replies:
            for name, values in reply["scores"].items():
                scores.setdefault(name, []).append(values)
        # A model that failed for some of the batches has no mean over all samples.
        whole = {name: np.concatenate(values) for name, values in scores.items() if len(values) == len(replies)}
        values = {
            f"{'held_out' if name in held_out else 'watched'}/{name}": float(values.mean())
            for name, values in whole.items()
        }
        looks = {name: Look.of(step, values) for name, values in whole.items() if name in held_out}
        return Seen(values, {name: look for name, look in looks.items() if look is not None})
