"""Embeddings as a role takes them up: arrays that came with the call, or rows of a file that it reads."""

import torch

from dipp_ray.config import RunConfig
from dipp_ray.data.embeddings import Embeddings, Rows
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds


class EmbedsReader:
    """Raises UserError where the run's embeddings cannot be read from this process."""

    def __init__(self, config: RunConfig, device: torch.device):
        self.device = device
        self.file = None if config.data.embeddings is None else Embeddings(config.data.embeddings)

    def __call__(self, given) -> PromptEmbeds:
        """On the role's device, fp32, from arrays (`PromptEmbeds.arrays`) or `Rows`; they move in the stored dtype."""
        if isinstance(given, Rows):
            assert self.file is not None, "rows are given where there is a file"
            return self.file.of(given).to(self.device).to(self.device, torch.float32)
        return PromptEmbeds.from_arrays(given, self.device)
