"""PixArt-alpha and PixArt-Sigma: a DiT that reads T5's tokens and their mask; eps beside a learned sigma."""

from typing import Any

import torch
from torch import Tensor

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.models.families.family import Family


class PixArtAlpha(Family):
    pipelines = ("PixArtAlphaPipeline",)
    multiple = 8
    networks = ("PixArtTransformer2DModel",)
    # At one step the pipeline takes the scheduler's x_0, which Euler gives in fp32 whatever the precision, so that the
    # VAE refuses it in bf16 and fp16; Heun's first step is Euler's, in the precision of its input.
    scheduler_of_sigma = "HeunDiscreteScheduler"
    last_layer = "proj_out"
    learned_sigma = True

    @property
    def longest(self) -> int:
        return 120

    @classmethod
    def present_name(cls, network_class: str, config: dict) -> str:
        # As alpha was published, before diffusers split its transformers; it loads them as what they are.
        old = network_class == "Transformer2DModel" and config.get("norm_type") == "ada_norm_single"
        return "PixArtTransformer2DModel" if old else network_class

    def text_widths(self) -> dict[str, list[tuple[str, str]]]:
        return {"caption_channels": [("text_encoder", "d_model")]}

    def encode(self, pipeline: Any, prompt: str | list[str], device: torch.device) -> PromptEmbeds:
        # clean_caption rewrites prompts where bs4 and ftfy happen to be installed: off here and in the exported call.
        tokens, mask, _, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, device=device, clean_caption=False
        )
        return PromptEmbeds(tokens, mask).trimmed()

    def output(self, network: Any, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        output = network(
            x_t,
            encoder_hidden_states=embeds.tokens,
            encoder_attention_mask=embeds.mask,
            timestep=t,
            added_cond_kwargs=self.added(network, x_t),
        ).sample
        return output[:, : x_t.shape[1]]  # the rest is the learned sigma, which one-step sampling does not read

    def added(self, network: Any, x_t: Tensor) -> dict[str, Tensor | None]:
        """The micro-conditions of the models for 1024 pixels: height and width in pixels, and their ratio."""
        if not network.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        pixels = [float(self.factor * side) for side in x_t.shape[-2:]]
        resolution = torch.tensor([pixels], device=x_t.device, dtype=x_t.dtype).repeat(len(x_t), 1)
        return {"resolution": resolution, "aspect_ratio": resolution[:, :1] / resolution[:, 1:]}

    def call_arguments(self) -> dict[str, Any]:
        return {"use_resolution_binning": False, "clean_caption": False} | super().call_arguments()

    def length_arguments(self, pipeline: Any, prompts: list[str]) -> dict[str, Any]:
        length = max(len(tokens) for tokens in pipeline.tokenizer(list(set(prompts))).input_ids)
        return {"max_sequence_length": min(self.longest, length)}


class PixArtSigma(PixArtAlpha):
    pipelines = ("PixArtSigmaPipeline",)
    scheduler_of_sigma = "EulerDiscreteScheduler"  # its pipeline takes the scheduler's sample

    @property
    def longest(self) -> int:
        return 300
