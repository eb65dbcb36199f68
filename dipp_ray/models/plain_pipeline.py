"""A pipeline folder in plain diffusers, called as its family's call wants it."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dipp_ray.errors import UserError
from dipp_ray.hub.fetch import local
from dipp_ray.models.components import load_components, require_files
from dipp_ray.models.families import Family
from dipp_ray.models.pipeline import one_step_of_folder, read_frame


class PlainPipeline:
    """Nothing of the trainer's: what a person gets who loads the folder. `pipeline` is diffusers' own object."""

    def __init__(self, frame: Family, pipeline: DiffusionPipeline):
        self.frame, self.pipeline = frame, pipeline

    def arguments(self, steps: int = 1, guidance_scale: float | None = None) -> dict:
        """What the pipeline's call needs beside the prompt; guidance_scale is alpha_cfg, from 1 on."""
        return call_arguments(self.frame, steps, guidance_scale)

    def latents(
        self, prompts: list[str], z: Tensor, steps: int = 1, guidance_scale: float | None = None, short: bool = False
    ) -> Tensor:
        """Latents [B, C, h, w] in the model's scale, from the noise z of that shape. short: no needless padding."""
        arguments = self.arguments(steps, guidance_scale)
        if short:
            arguments |= self.frame.length_arguments(self.pipeline, prompts)
        given = self.frame.packed(z.to(self.pipeline.device))
        # A list of its own: a pipeline may write its template into the one that it is given.
        images = self.pipeline(list(prompts), latents=given, output_type="latent", **arguments).images
        return self.frame.unpacked(images)


def call_arguments(frame: Family, steps: int = 1, guidance_scale: float | None = None) -> dict:
    """What the call of the folder's pipeline needs beside the prompt; one step without guidance if nothing is said."""
    return {"num_inference_steps": steps} | frame.guidance_arguments(guidance_scale) | frame.call_arguments()


def load_pipeline(folder: str | Path, device: torch.device | str = "cpu", frame: Family | None = None) -> PlainPipeline:
    """A pipeline folder in plain diffusers, without its progress bar. Raises UserError where it does not load.

    An exported folder is loaded as anybody would; another, whose files may be of any kind, part by part, in fp32.
    """
    frame = frame or read_frame(folder)
    folder = local(folder)
    require_files(frame)
    if one_step_of_folder(folder) is None:
        pipeline = load_components(frame, torch.float32)
    else:
        try:
            pipeline = DiffusionPipeline.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, **frame.absent
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder} does not load as a diffusers pipeline: {reason}") from None
    pipeline.set_progress_bar_config(disable=True)
    return PlainPipeline(frame, pipeline.to(device))
