"""Qwen-Image: a transformer of two streams on packed latents, which reads the tokens of Qwen2.5-VL; flow matching.

Its pipeline scales a guided prediction, token by token, to the length of the conditional one. Here guidance is what it
is before that: alpha_cfg of the two branches.
"""

from typing import Any

import torch
from torch import Tensor

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.errors import UserError
from dipp_ray.models.families.packing import Packed, pack, unpack

NULL = " "  # the pipeline's own negative prompt
LONGEST = 512  # tokens, of its call


class QwenImage(Packed):
    pipelines = ("QwenImagePipeline",)
    networks = ("QwenImageTransformer2DModel",)
    flow = True

    def check(self) -> None:
        super().check()
        if self.network.get("guidance_embeds"):
            raise UserError(f"{self.folder}: its transformer has guidance_embeds, which Qwen-Image has not: take that")

    @property
    def longest(self) -> int:
        return LONGEST

    def text_widths(self) -> dict[str, list[tuple[str, str]]]:
        return {"joint_attention_dim": [("text_encoder", "hidden_size")]}

    def encode(self, pipeline: Any, prompt: str | list[str], device: torch.device) -> PromptEmbeds:
        tokens, mask = pipeline.encode_prompt(prompt or NULL, device, max_sequence_length=LONGEST)
        whole = torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
        return PromptEmbeds(tokens, whole if mask is None else mask)

    def output(self, network: Any, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        assert embeds.mask is not None
        batch, _, height, width = x_t.shape
        tokens = network(
            hidden_states=pack(x_t),
            timestep=t / self.diffusion.schedule.num_timesteps,  # sigma
            encoder_hidden_states=embeds.tokens,
            encoder_hidden_states_mask=None if embeds.mask.all() else embeds.mask,
            img_shapes=[[(1, height // 2, width // 2)]] * batch,
        ).sample
        return unpack(tokens, height, width)

    def call_arguments(self) -> dict[str, Any]:
        height, width = self.pixels
        return {"height": height, "width": width}

    def guidance_arguments(self, scale: float | None) -> dict[str, Any]:
        return {"true_cfg_scale": 1.0} if scale in (None, 1) else {"true_cfg_scale": scale, "negative_prompt": NULL}
