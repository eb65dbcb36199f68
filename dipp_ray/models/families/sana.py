"""SANA and SANA-Sprint: linear attention on latents of a deep autoencoder, reading the tokens of Gemma; flow matching.

Sprint is distilled from guidance and to few steps: it is told a guidance scale, and is trained here as the model that
it is at that scale. As a teacher it is no score: a consistency model answers with where a path ends, not with the mean
of x_0. Its pipeline goes by an angle, its network by s = sin/(sin + cos) of it, the sigma of a flow: x_s is x of the
angle times 1/(sin + cos), and sigma_data is left out on the way in and out.
"""

import inspect
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from dipp_ray.diffusion.one_step import OneStep
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.diffusion.schedule import FlowSchedule
from dipp_ray.errors import UserError
from dipp_ray.models.families.family import Family
from dipp_ray.models.schedulers import STEPS


class Sana(Family):
    pipelines = ("SanaPipeline",)
    networks = ("SanaTransformer2DModel",)
    flow = True
    one_step_shift = 2.0**14  # its pipeline leaves the sigmas to the scheduler, which shifts them twice
    multiple = 32
    learned_sigma = True
    adapter_targets = ("to_q", "to_k", "to_v")

    def check(self) -> None:
        super().check()
        told = bool(self.network.get("guidance_embeds"))
        if told != self.embeds_guidance:
            has = "has guidance_embeds, as SANA-Sprint's" if told else "has no guidance_embeds, as SANA's own"
            raise UserError(
                f"{self.folder}: its transformer {has}, but its pipeline is a {self.pipeline_class}: take a folder "
                "whose parts belong together"
            )

    @property
    def longest(self) -> int:
        return 300

    def text_widths(self) -> dict[str, list[tuple[str, str]]]:
        return {"caption_channels": [("text_encoder", "hidden_size")]}

    def encode(self, pipeline: Any, prompt: str | list[str], device: torch.device) -> PromptEmbeds:
        # The pipeline puts an instruction before what a person asks for, and none before the null prompt.
        instruction = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
        tokens, mask, *_ = pipeline.encode_prompt(
            prompt,
            device=device,
            clean_caption=False,
            complex_human_instruction=instruction if prompt else None,
            **self.unguided,
        )
        return PromptEmbeds(tokens, mask).trimmed()

    unguided: ClassVar[dict[str, Any]] = {"do_classifier_free_guidance": False}

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


class SanaSprint(Sana):
    pipelines = ("SanaSprintPipeline",)
    unguided: ClassVar[dict[str, Any]] = {}  # its pipeline knows no other branch
    two_branches = False
    own_guidance = 4.5  # as its pipeline has it

    @property
    def embeds_guidance(self) -> bool:
        return True

    @property
    def guidance(self) -> float:
        return self.own_guidance if self.embedded_guidance is None else self.embedded_guidance

    @cached_property
    def diffusion(self) -> Diffusion:
        """Of its own scheduler alone, x_t = cos(t) x_0 + sin(t) z with t an angle, read as the flow that it is."""
        kind, prediction = self.scheduler.get("_class_name"), self.scheduler.get("prediction_type", "trigflow")
        if kind != "SCMScheduler" or prediction != "trigflow":
            raise UserError(
                f"{self.folder}: its scheduler {kind} of {prediction} is not SANA-Sprint's, an SCMScheduler of trigflow"
                ": take the one it was published with"
            )
        return Diffusion(FlowSchedule(self.scheduler.get("num_train_timesteps", STEPS)), "flow_prediction")

    def output(self, network: Any, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        guidance = torch.full((len(x_t),), self.guidance, device=x_t.device, dtype=embeds.tokens.dtype)
        output = network(
            x_t,
            encoder_hidden_states=embeds.tokens,
            encoder_attention_mask=embeds.mask,
            guidance=guidance * self.network["guidance_embeds_scale"],
            timestep=t / self.diffusion.schedule.num_timesteps,  # sigma
        ).sample
        return output[:, : x_t.shape[1]]

    def one_step_scheduler(self, one_step: OneStep) -> Any:
        """Its own: one step from an angle of 1.5708, the flow's end to 4e-6, gives z - v."""
        import diffusers

        return diffusers.SCMScheduler.from_config(self.scheduler)

    def call_arguments(self) -> dict[str, Any]:
        return super().call_arguments() | {"intermediate_timesteps": None}  # which are of two steps alone

    def guidance_arguments(self, scale: float | None) -> dict[str, Any]:
        """The scale that the network is told, whatever alpha_cfg: its pipeline has no second branch."""
        return {"guidance_scale": self.guidance}
