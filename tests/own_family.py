"""A family that the package does not know, as somebody would write it beside their configuration: AuraFlow."""

from typing import Any

import torch
from torch import Tensor

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.models.families import Family


class AuraFlow(Family):
    pipelines = ("AuraFlowPipeline",)
    networks = ("AuraFlowTransformer2DModel",)
    flow = True

    def encode(self, pipeline: Any, prompt: str | list[str], device: torch.device) -> PromptEmbeds:
        tokens, *_ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, device=device)
        return PromptEmbeds(tokens)  # unmasked: the pipeline puts zeros where a prompt is padded

    def output(self, network: Any, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        sigma = t / self.diffusion.schedule.num_timesteps
        return network(x_t, encoder_hidden_states=embeds.tokens, timestep=sigma).sample
