"""Prompts to embeddings, by the pipeline's own tokenizers and text encoders."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from dipp_ray.errors import UserError
from dipp_ray.models.embeds import PromptEmbeds
from dipp_ray.models.pipeline import read_frame


class TextEncoder:
    """Encodes prompts one by one, so that a prompt's bits never depend on its batch, and remembers them.

    `remember` bounds the memory: so many prompts, the oldest forgotten first.
    """

    def __init__(self, folder: str | Path, device: torch.device, remember: int = 20_000):
        frame = read_frame(folder)
        self.pipeline = DiffusionPipeline.from_pretrained(
            folder, use_safetensors=True, **{frame.network_part: None, "vae": None}
        ).to(device)
        self.device = device
        self.remember = remember
        self._known: dict[str, PromptEmbeds] = {}
        try:
            self._encode = _ENCODERS[type(self.pipeline).__name__]
        except KeyError:
            name = type(self.pipeline).__name__
            known = ", ".join(_ENCODERS)
            raise UserError(f"{folder}: prompts of a {name} are not supported; known are {known}") from None

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> PromptEmbeds:
        """Embeddings of the prompts, trimmed to the longest, on the CPU; '' is the null prompt of guidance."""
        for prompt in prompts:
            if prompt not in self._known:
                self._known[prompt] = self._encode(self.pipeline, prompt, self.device).to("cpu")
                if len(self._known) > self.remember:
                    del self._known[next(iter(self._known))]
        return PromptEmbeds.concatenate(*(self._known[prompt] for prompt in prompts)).trimmed()


def _pixart(pipeline, prompt: str, device) -> PromptEmbeds:
    # clean_caption rewrites prompts where bs4 and ftfy happen to be installed: off here and in the exported call.
    tokens, mask, _, _ = pipeline.encode_prompt(
        prompt, do_classifier_free_guidance=False, device=device, clean_caption=False
    )
    return PromptEmbeds(tokens, mask).trimmed()


def _stable_diffusion(pipeline, prompt: str, device) -> PromptEmbeds:
    tokens, _ = pipeline.encode_prompt(prompt, device, 1, False)
    return PromptEmbeds(tokens)


def _stable_diffusion_xl(pipeline, prompt: str, device) -> PromptEmbeds:
    tokens, _, pooled, _ = pipeline.encode_prompt(prompt, device=device, do_classifier_free_guidance=False)
    return PromptEmbeds(tokens, pooled=pooled)


_ENCODERS = {
    "PixArtAlphaPipeline": _pixart,
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
}
