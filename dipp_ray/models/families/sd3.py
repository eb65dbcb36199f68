"""Stable Diffusion 3 and 3.5: a transformer of two streams that reads two CLIPs and T5; flow matching."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.errors import UserError
from dipp_ray.models.families.family import Family


class StableDiffusion3(Family):
    pipelines = ("StableDiffusion3Pipeline",)
    networks = ("SD3Transformer2DModel",)
    flow = True
    optional = ("text_encoder_3", "tokenizer_3")  # T5 and its tokenizer, which are larger than all the rest
    one_step_shift = 2.0**14  # its pipeline leaves the sigmas to the scheduler, which shifts them twice
    adapter_targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        _, *sides = self.latent_shape
        largest = self.network["pos_embed_max_size"] * self.patch
        if max(sides) > largest:
            raise UserError(
                f"model.resolution={list(self.pixels)}: the transformer of {self.folder} knows positions up to "
                f"{largest * self.factor} pixels a side: choose a smaller one"
            )

    @property
    def longest(self) -> int:
        return self.tokens_of("tokenizer", 77) + 256  # of CLIP, and of T5

    def text_widths(self) -> dict[str, list[tuple[str, str]]]:
        return {
            "joint_attention_dim": [("text_encoder_3", "d_model")],
            "pooled_projection_dim": [("text_encoder", "projection_dim"), ("text_encoder_2", "projection_dim")],
        }

    def encode(self, pipeline: Any, prompt: str | list[str], device: torch.device) -> PromptEmbeds:
        if pipeline.text_encoder_3 is None:
            # Then it puts zeros in the place of T5's tokens, whose width it asks of the network, which is not loaded.
            vars(pipeline)["transformer"] = SimpleNamespace(config=SimpleNamespace(**self.network))
        tokens, _, pooled, _ = pipeline.encode_prompt(
            prompt, None, None, device=device, do_classifier_free_guidance=False
        )
        return PromptEmbeds(tokens, pooled=pooled)

    def output(self, network: Any, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        steps = self.diffusion.schedule.num_timesteps
        return network(
            hidden_states=x_t,
            timestep=t * (1000 / steps),  # 1000 sigma
            encoder_hidden_states=embeds.tokens,
            pooled_projections=embeds.pooled,
        ).sample
