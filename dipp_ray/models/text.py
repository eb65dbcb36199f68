"""Prompts to embeddings, by the pipeline's own tokenizers and text encoders."""

from functools import lru_cache
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.models.denoiser import DTYPES
from dipp_ray.models.encoders import ENCODERS
from dipp_ray.models.pipeline import read_frame


class TextEncoder:
    """Encodes prompts one by one, so that a prompt's bits never depend on its batch, and remembers them.

    `dtype`, 'fp32' or 'bf16', is that of the encoders' weights and arithmetic. `remember` bounds the memory: so many
    prompts, the one unused for longest forgotten first. Raises UserError for a folder whose pipeline is not supported.
    """

    def __init__(self, folder: str | Path, device: torch.device, dtype: str = "fp32", remember: int = 20_000):
        frame = read_frame(folder)
        self.pipeline = DiffusionPipeline.from_pretrained(
            folder, use_safetensors=True, torch_dtype=DTYPES[dtype], **{frame.network_part: None, "vae": None}
        ).to(device)
        encode = ENCODERS[frame.pipeline_class]
        self._embeds_of = lru_cache(remember)(lambda prompt: encode(self.pipeline, prompt, device).to("cpu"))

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> PromptEmbeds:
        """Embeddings of the prompts, trimmed to the longest, on the CPU; '' is the null prompt of guidance."""
        rows = {prompt: self._embeds_of(prompt) for prompt in dict.fromkeys(prompts)}
        return PromptEmbeds.concatenate(*(rows[prompt] for prompt in prompts)).trimmed()
