"""Prompts to embeddings, by the pipeline's own tokenizers and text encoders."""

from pathlib import Path

import torch

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.models.components import load_components
from dipp_ray.models.denoiser import DTYPES
from dipp_ray.models.families import Family
from dipp_ray.models.pipeline import read_frame


class TextEncoder:
    """Encodes prompts one by one, so that a prompt's bits never depend on its batch, and remembers them.

    `dtype`, 'fp32' or 'bf16', is that of the encoders' weights and arithmetic. `remember` bounds the memory: so many
    prompts, the oldest forgotten first. `frame` is the folder's, read here where it is None. Raises UserError for a
    folder whose pipeline is not supported.
    """

    def __init__(
        self,
        folder: str | Path,
        device: torch.device,
        dtype: str = "fp32",
        remember: int = 20_000,
        frame: Family | None = None,
    ):
        self.frame = frame or read_frame(folder)
        self.pipeline = load_components(self.frame, DTYPES[dtype], (self.frame.network_part, "vae")).to(device)
        self.device = device
        self.remember = remember
        self._known: dict[str, PromptEmbeds] = {}

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> PromptEmbeds:
        """Embeddings of the prompts, trimmed to the longest, on the CPU; '' is the null prompt of guidance."""
        for prompt in prompts:
            if prompt not in self._known:
                self._known[prompt] = self.frame.encode(self.pipeline, prompt, self.device).to("cpu")
        rows = [self._known[prompt] for prompt in prompts]
        while len(self._known) > self.remember:  # only now: this batch may need the oldest
            del self._known[next(iter(self._known))]
        return PromptEmbeds.concatenate(*rows).trimmed()
