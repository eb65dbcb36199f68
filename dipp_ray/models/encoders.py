"""One prompt to its embeddings, for each known class of pipeline: what differs between them is decided here."""

from collections.abc import Callable

import torch

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds


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
    if prompt == "" and pipeline.config.force_zeros_for_empty_prompt:  # as diffusers does for the negative branch
        tokens, pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
    return PromptEmbeds(tokens, pooled=pooled)


# By class name, so that reading a folder's configuration needs no import of diffusers' pipelines.
ENCODERS: dict[str, Callable[..., PromptEmbeds]] = {
    "PixArtAlphaPipeline": _pixart,
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
}
