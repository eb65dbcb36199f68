"""Stable Diffusion XL: a UNet that reads two CLIPs' tokens, a pooled embedding, and the picture's sizes."""

from typing import Any

import torch
from torch import Tensor

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.models.families.stable_diffusion import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    pipelines = ("StableDiffusionXLPipeline",)
    addition = "text_time"

    def text_widths(self) -> dict[str, list[tuple[str, str]]]:
        return {
            "cross_attention_dim": [("text_encoder", "hidden_size"), ("text_encoder_2", "hidden_size")],
            "projection_class_embeddings_input_dim": [("text_encoder_2", "projection_dim")],
        }

    def text_width_of(self, key: str) -> int | None:
        width = super().text_width_of(key)
        if key == "projection_class_embeddings_input_dim" and width:  # beside the six numbers of the picture's sizes
            width -= 6 * self.network["addition_time_embed_dim"]
        return width

    def encode(self, pipeline: Any, prompt: str | list[str], device: torch.device) -> PromptEmbeds:
        tokens, _, pooled, _ = pipeline.encode_prompt(prompt, device=device, do_classifier_free_guidance=False)
        if prompt == "" and pipeline.config.force_zeros_for_empty_prompt:  # as diffusers does for the negative branch
            tokens, pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
        return PromptEmbeds(tokens, pooled=pooled)

    def added(self, x_t: Tensor, embeds: PromptEmbeds) -> dict[str, Tensor | None] | None:
        """Of a picture that was taken whole: original height and width, crop at 0, 0, target height and width."""
        height, width = (float(self.factor * side) for side in x_t.shape[-2:])
        time_ids = torch.tensor([[height, width, 0, 0, height, width]], device=x_t.device, dtype=x_t.dtype)
        return {"text_embeds": embeds.pooled, "time_ids": time_ids.expand(len(x_t), -1)}
