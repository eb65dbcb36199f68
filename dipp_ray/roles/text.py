"""The two ends of the pipeline: prompts to embeddings, and latents to the few images that a person looks at."""

import numpy as np
import ray
import torch

from dipp_ray.config import RunConfig
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.text import REMEMBER, text_encoder
from dipp_ray.reporting.quiet import quiet_libraries
from dipp_ray.roles.process import prepare
from dipp_ray.roles.report import Report, Stopwatch


# Stateless but for what it remembers.
@ray.remote(max_restarts=-1, max_task_retries=-1, concurrency_groups={"health": 1})
class Text:
    def __init__(self, config: RunConfig):
        quiet_libraries()
        self.device = prepare(config.roles.text, config.run.deterministic)
        self.folder = config.model.teacher
        self.chunk = config.micro_batch_size
        # Where each role reads embeddings from a file nobody is asked for any, and no text encoder is loaded.
        embedded = config.data.embeddings is not None
        self.encoder = None if embedded else text_encoder(config, self.device, REMEMBER)
        self.decoder: LatentDecoder | None = None  # loaded when the first image is asked for

    @ray.method(concurrency_group="health")
    def alive(self) -> None:
        """Returns as long as the process runs, whatever it is busy with."""

    @ray.method(num_returns=2)
    def encode(self, prompts: list[str]) -> tuple[tuple, Report]:
        """Embeddings as arrays (PromptEmbeds.arrays) of the prompts; '' is the null prompt."""
        watch = Stopwatch()
        assert self.encoder is not None, "the run's embeddings lie in a file"
        return self.encoder(prompts).arrays(), watch.report()

    @torch.no_grad()
    def decode(self, x0: np.ndarray) -> np.ndarray:
        """Images [B, 3, H, W] in [0, 1] of latents x0 [B, C, h, w], a micro-batch at a time."""
        self.decoder = self.decoder or LatentDecoder.from_folder(self.folder).to(self.device)
        chunks = torch.tensor(x0).split(self.chunk)
        return np.concatenate([self.decoder.decode(some.to(self.device)).float().cpu().numpy() for some in chunks])
