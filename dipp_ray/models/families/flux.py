"""FLUX.1, dev and schnell: a transformer on latents packed two by two, which reads T5's tokens; flow matching.

dev is distilled from guidance: it is told a guidance scale, and is trained here as the model that it is at that scale.
"""

from typing import Any

import torch
from torch import Tensor

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.models.families.packing import Packed, pack, unpack


class Flux(Packed):
    pipelines = ("FluxPipeline",)
    networks = ("FluxTransformer2DModel",)
    flow = True
    adapter_targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    )  # fmt: skip
    own_guidance = 3.5  # of dev, as its pipeline has it

    @property
    def channels_given(self) -> int | None:
        given = self.network.get("out_channels")  # of a token
        return None if given is None else given // 4

    @property
    def embeds_guidance(self) -> bool:
        return bool(self.network.get("guidance_embeds"))

    @property
    def guidance(self) -> float:
        return self.own_guidance if self.embedded_guidance is None else self.embedded_guidance

    def text_widths(self) -> dict[str, list[tuple[str, str]]]:
        return {
            "joint_attention_dim": [("text_encoder_2", "d_model")],
            "pooled_projection_dim": [("text_encoder", "hidden_size")],
        }

    @property
    def longest(self) -> int:
        """Tokens that every prompt is padded to, unmasked: 512, or 256 for schnell; fewer if its tokenizer says so."""
        return self.tokens_of("tokenizer_2", 512 if self.embeds_guidance else 256)

    def encode(self, pipeline: Any, prompt: str | list[str], device: torch.device) -> PromptEmbeds:
        tokens, pooled, _ = pipeline.encode_prompt(prompt, None, device, max_sequence_length=self.longest)
        return PromptEmbeds(tokens, pooled=pooled)

    def output(self, network: Any, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        height, width = x_t.shape[-2:]
        positions = torch.zeros(height // 2, width // 2, 3, device=x_t.device)
        positions[..., 1] = torch.arange(height // 2, device=x_t.device)[:, None]
        positions[..., 2] = torch.arange(width // 2, device=x_t.device)[None]
        guidance = torch.full((len(x_t),), self.guidance, device=x_t.device) if self.embeds_guidance else None
        packed = network(
            hidden_states=pack(x_t),
            timestep=t / self.diffusion.schedule.num_timesteps,  # sigma
            guidance=guidance,
            pooled_projections=embeds.pooled,
            encoder_hidden_states=embeds.tokens,
            txt_ids=torch.zeros(embeds.tokens.shape[1], 3, device=x_t.device),
            img_ids=positions.reshape(-1, 3),
        ).sample
        return unpack(packed, height, width)

    def call_arguments(self) -> dict[str, Any]:
        height, width = self.pixels
        return {"height": height, "width": width, "max_sequence_length": self.longest}

    def guidance_arguments(self, scale: float | None) -> dict[str, Any]:
        """The scale that the network is told, and beside it the guidance by two branches, where there is one."""
        told = {"guidance_scale": self.guidance if self.embeds_guidance else 0.0}
        return told if scale in (None, 1) else told | {"true_cfg_scale": scale, "negative_prompt": ""}
