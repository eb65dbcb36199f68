"""Stable Diffusion 1.x and 2.x: a UNet that reads one CLIP's tokens; eps, or v (2.1)."""

from typing import Any

import torch
from torch import Tensor

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.errors import UserError
from dipp_ray.models.families.family import Family

# Conditions of diffusers' UNet that this package hands over to none: a model that was trained with one needs it.
UNKNOWN_CONDITIONS = ("time_cond_proj_dim", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


class StableDiffusion(Family):
    pipelines = ("StableDiffusionPipeline",)
    multiple = 8
    networks = ("UNet2DConditionModel",)
    network_part = "unet"
    convolutional = True
    last_layer = "conv_out"
    immaterial = ("sample_size",)  # SDXL-Turbo's is 64, its teacher's 128: both read model.resolution
    addition: str | None = None  # the UNet's addition_embed_type

    @property
    def patch(self) -> int:
        return 1  # its levels halve, and are brought back to the size of their neighbours

    def check(self) -> None:
        super().check()
        extra = next((key for key in UNKNOWN_CONDITIONS if self.network.get(key) is not None), None)
        if self.network.get("addition_embed_type") != self.addition:
            extra = "addition_embed_type"
        if extra:
            raise UserError(
                f"{self.folder}: its unet has {extra}={self.network.get(extra)}, a condition that is not given to a "
                f"{self.pipeline_class} here: take the base model"
            )

    @property
    def longest(self) -> int:
        return self.tokens_of("tokenizer", 77)

    def text_widths(self) -> dict[str, list[tuple[str, str]]]:
        return {"cross_attention_dim": [("text_encoder", "hidden_size")]}

    def encode(self, pipeline: Any, prompt: str | list[str], device: torch.device) -> PromptEmbeds:
        tokens, _ = pipeline.encode_prompt(prompt, device, 1, False)
        return PromptEmbeds(tokens)

    def output(self, network: Any, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        added = self.added(x_t, embeds)
        return network(x_t, t, encoder_hidden_states=embeds.tokens, added_cond_kwargs=added).sample

    def added(self, x_t: Tensor, embeds: PromptEmbeds) -> dict[str, Tensor | None] | None:
        """The UNet's conditions beside time and tokens."""
        return None
