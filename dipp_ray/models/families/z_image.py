"""Z-Image: a transformer of one stream that reads Qwen3's tokens; flow matching, with time and output the other way."""

from typing import Any

import torch
from torch import Tensor

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.models.families.family import Family


class ZImage(Family):
    pipelines = ("ZImagePipeline",)
    networks = ("ZImageTransformer2DModel",)
    flow = True
    side = 1024  # pixels: of the pipeline's default

    @property
    def patch(self) -> int:
        return 2  # the pipeline's; the network may know others

    @property
    def sample_size(self) -> Any:
        return self.side // self.factor

    @property
    def longest(self) -> int:
        return 512

    def text_widths(self) -> dict[str, list[tuple[str, str]]]:
        return {"cap_feat_dim": [("text_encoder", "hidden_size")]}

    def encode(self, pipeline: Any, prompt: str | list[str], device: torch.device) -> PromptEmbeds:
        found, _ = pipeline.encode_prompt(prompt, device, do_classifier_free_guidance=False)
        rows = [PromptEmbeds(row[None], torch.ones(1, len(row), dtype=torch.int64, device=row.device)) for row in found]
        return PromptEmbeds.concatenate(*rows)

    def output(self, network: Any, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        """The network reads lists, 1 - sigma, and gives x_0 - eps: the negative velocity."""
        assert embeds.mask is not None
        prompts = [tokens[mask.bool()] for tokens, mask in zip(embeds.tokens, embeds.mask, strict=True)]
        time = 1 - t / self.diffusion.schedule.num_timesteps
        output = network([x[:, None] for x in x_t], time, prompts).sample
        return -torch.stack(list(output))[:, :, 0]

    def call_arguments(self) -> dict[str, Any]:
        height, width = self.pixels
        return {"height": height, "width": width}

    def guidance_arguments(self, scale: float | None) -> dict[str, Any]:
        """The pipeline's c + g (c - u) is alpha_cfg = 1 + g."""
        return {"guidance_scale": 0.0 if scale is None else scale - 1.0}
