"""SANA: linear attention on the latents of a deep autoencoder, reading the tokens of Gemma; flow matching."""

import inspect
from typing import Any

import torch
from torch import Tensor

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.errors import UserError
from dipp_ray.models.families.family import Family


class Sana(Family):
    pipelines = ("SanaPipeline",)
    networks = ("SanaTransformer2DModel",)
    flow = True
    one_step_shift = 2.0**14  # its pipeline leaves the sigmas to the scheduler, which shifts them twice
    multiple = 32
    adapter_targets = ("to_q", "to_k", "to_v")

    def check(self) -> None:
        super().check()
        if self.network.get("guidance_embeds"):
            raise UserError(
                f"{self.folder}: its transformer has guidance_embeds, as SANA-Sprint's, which is not trained as SANA "
                "is: take SANA itself"
            )

    def text_widths(self) -> dict[str, list[tuple[str, str]]]:
        return {"caption_channels": [("text_encoder", "hidden_size")]}

    def encode(self, pipeline: Any, prompt: str, device: torch.device) -> PromptEmbeds:
        # The pipeline puts an instruction before what a person asks for, and none before the null prompt.
        instruction = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
        tokens, mask, _, _ = pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            device=device,
            clean_caption=False,
            complex_human_instruction=instruction if prompt else None,
        )
        return PromptEmbeds(tokens, mask).trimmed()

    def output(self, network: Any, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        steps = self.diffusion.schedule.num_timesteps
        output = network(
            x_t,
            encoder_hidden_states=embeds.tokens,
            encoder_attention_mask=embeds.mask,
            timestep=t * (1000 / steps) * self.network["timestep_scale"],  # 1000 sigma, in the network's own scale
        ).sample
        return output[:, : x_t.shape[1]]

    def call_arguments(self) -> dict[str, Any]:
        height, width = self.pixels  # always, for the pipeline's default is 1024 pixels whatever its network
        return {"height": height, "width": width, "use_resolution_binning": False, "clean_caption": False}
