"""Prompts to embeddings, by the pipeline's own tokenizers and text encoders."""

from pathlib import Path

import torch

from dipp_ray.config import RunConfig
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.hub.fetch import local
from dipp_ray.hub.selection import weights_but_of
from dipp_ray.models.components import load_components
from dipp_ray.models.denoiser import DTYPES
from dipp_ray.models.families import Family
from dipp_ray.models.pipeline import frame_of, read_frame


class TextEncoder:
    """Encodes prompts one by one, so that a prompt's bits never depend on its batch, and remembers them.

    `dtype`, 'fp32' or 'bf16', is that of the encoders' weights and arithmetic. `remember` bounds the memory: so many
    bytes, the oldest prompt forgotten first (they take up to 8 MB each). `frame` is the folder's, read here where it is
    None. Raises UserError for a folder whose pipeline is not supported.
    """

    def __init__(
        self,
        folder: str | Path,
        device: torch.device,
        dtype: str = "fp32",
        remember: int = 4 * 2**30,
        frame: Family | None = None,
    ):
        self.frame = frame or read_frame(folder)
        others = (self.frame.network_part, "vae")
        local(folder, weights_but_of(*others, *self.frame.dispensable))
        self.pipeline = load_components(self.frame, DTYPES[dtype], others).to(device)
        self.device = device
        self.remember = remember
        self._known: dict[str, PromptEmbeds] = {}
        self._bytes = 0

    @torch.no_grad()
    def row(self, prompt: str) -> PromptEmbeds:
        """One prompt's embeddings as the pipeline gives them, on the CPU: `__call__` pads and trims a batch of such."""
        if prompt not in self._known:
            self._known[prompt] = self.frame.encode(self.pipeline, prompt, self.device).to("cpu").clone()
            self._bytes += self._known[prompt].nbytes
        return self._known[prompt]

    def __call__(self, prompts: list[str]) -> PromptEmbeds:
        """Embeddings of the prompts, trimmed to the longest, on the CPU; '' is the null prompt of guidance."""
        rows = [self.row(prompt) for prompt in prompts]
        while self._bytes > self.remember and len(self._known) > 1:  # only now: this batch may need the oldest
            self._bytes -= self._known.pop(next(iter(self._known))).nbytes
        return PromptEmbeds.concatenate(*rows).trimmed()


def text_encoder(config: RunConfig, device: torch.device) -> TextEncoder:
    """That of a run: its teacher's, in the precision of its text role."""
    return TextEncoder(config.model.teacher, device, config.roles.text.dtype, frame=frame_of(config.model))
