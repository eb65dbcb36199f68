"""What a family of text-to-image models is: all that distinguishes it from the others, in one class of one file."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dipp_ray.diffusion.one_step import OneStep
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.errors import UserError
from dipp_ray.models.json_files import read_object
from dipp_ray.models.schedulers import diffusion_of, flow_within_betas, is_flow_within_betas, one_step_scheduler
from dipp_ray.models.vae_folder import VaeFolder


@dataclass(frozen=True, eq=False)
class Family:
    """A family's reading of one pipeline folder: made from the folder's JSON files, without a weight.

    A subclass must define `pipelines`, `networks`, `encode` and `output`; the rest is right for most families as it
    stands here. Latents are [B, C, h, w] everywhere outside: a family whose network reads them packed packs them in
    `output`, and in `packed` and `unpacked` for its pipeline.
    """

    folder: Path
    index: dict = field(repr=False)  # model_index.json
    network: dict = field(repr=False)  # the network's config.json, with its class's defaults where it says nothing
    scheduler: dict = field(repr=False)  # scheduler_config.json
    vae: VaeFolder = field(repr=False)
    resolution: tuple[int, int] | None = None  # height, width in pixels; None: the folder's own
    embedded_guidance: float | None = None  # for networks that read their guidance scale; None: the family's own

    # Names of diffusers' classes, so that a folder is read without importing them.
    pipelines: ClassVar[tuple[str, ...]]
    networks: ClassVar[tuple[str, ...]]
    network_part: ClassVar[str] = "transformer"  # in the folder and in its pipeline
    convolutional: ClassVar[bool] = False  # whether the layout of its input is its layers' (roles.*.channels_last)
    flow: ClassVar[bool] = False  # whether the scheduler must be one of flow matching
    immaterial: ClassVar[tuple[str, ...]] = ()  # settings of the network that change nothing of what it computes
    learned_sigma: ClassVar[bool] = False  # whether a network may give a sigma beside: twice the latents' channels
    two_branches: ClassVar[bool] = True  # whether it is guided by a null branch: not where guidance was distilled away
    multiple: ClassVar[int] = 1  # of pixels a side, that the pipeline's own call asks for
    scheduler_of_sigma: ClassVar[str] = "EulerDiscreteScheduler"  # of an exported step, if of betas
    one_step_shift: ClassVar[float] = 2.0**18  # of an exported step, if of a flow: all sigmas are near 1 by it
    last_layer: ClassVar[str | None] = None  # module of the network whose output, times a number, is the network's
    # Components that a pipeline works without, named or not.
    dispensable: ClassVar[tuple[str, ...]] = ("safety_checker", "feature_extractor", "image_encoder")
    # Components that a folder of its may do without on purpose: not named there, or as null.
    optional: ClassVar[tuple[str, ...]] = ()
    # The modules of the network that the family's published training scripts adapt by LoRA.
    adapter_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")

    @classmethod
    def present_name(cls, network_class: str, config: dict) -> str:
        """The name under which diffusers now knows the class of a network with this config.json."""
        return network_class

    # -- what the folder holds -----------------------------------------------------------------------------------

    @property
    def pipeline_class(self) -> str:
        return self.index["_class_name"]

    @property
    def network_class(self) -> str:
        return self.index[self.network_part][1]

    @property
    def factor(self) -> int:
        """Pixels of an image's side per latent."""
        return self.vae.factor

    @property
    def channels(self) -> int:
        """Channels C of the latents."""
        return self.network["in_channels"]

    @property
    def channels_given(self) -> int | None:
        """Channels of what the network gives; None: its configuration says none, and they are the latents'."""
        return self.network.get("out_channels")

    @property
    def patch(self) -> int:
        """Latents of a side that the network takes as one: height and width in latents are multiples of it."""
        return self.network.get("patch_size") or 1

    @property
    def sample_size(self) -> Any:
        """Height and width in latents that the folder's network was made for: a number, a pair, or None."""
        return self.network.get("sample_size")

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, h, w of one sample's latents. Raises UserError where the resolution is not known or does not divide."""
        if self.resolution is None:
            size = self.sample_size
            if size is None:
                raise UserError(
                    f"{self.folder}: its {self.network_part} has no sample_size: set model.resolution=[height, width]"
                )
            sides = size if isinstance(size, list | tuple) else (size, size)
            if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
                raise UserError(
                    f"{self.folder}: its {self.network_part} has sample_size={size}, which is no height and width: set "
                    "model.resolution=[height, width]"
                )
            height, width = sides
        else:
            unit = math.lcm(self.factor * self.patch, self.multiple)
            if any(side % unit for side in self.resolution):
                raise UserError(
                    f"model.resolution={list(self.resolution)}: height and width must be multiples of {unit} pixels "
                    f"for {self.folder}, of whose images a latent is {self.factor} pixels a side and a patch "
                    f"{self.patch} latents"
                )
            height, width = (side // self.factor for side in self.resolution)
        return (self.channels, height, width)

    @cached_property
    def diffusion(self) -> Diffusion:
        """The forward process and what the network's output means. Raises UserError where the scheduler is another."""
        return diffusion_of(self.folder, self.scheduler, flow=self.flow)

    def check(self) -> None:
        """Raise UserError where the folder's settings are not those of models that this family knows."""
        if self.channels != self.vae.latent_channels:
            raise UserError(
                f"{self.folder}: its {self.network_part} reads {self.channels} channels, but its VAE has "
                f"{self.vae.latent_channels}: take a text-to-image pipeline whose parts belong together"
            )
        if self.channels_given not in (None, self.channels, *([2 * self.channels] if self.learned_sigma else [])):
            doubled = ", or twice as many with a learned sigma" if self.learned_sigma else ""
            raise UserError(
                f"{self.folder}: its {self.network_part} gives {self.channels_given} channels (out_channels), and not "
                f"the {self.channels} of its latents{doubled}: take a folder whose network predicts these"
            )
        if self.embedded_guidance is not None and not self.embeds_guidance:
            raise UserError(
                f"model.embedded_guidance={self.embedded_guidance:g}: the network of {self.folder} reads no guidance "
                "scale: leave it out, and set objective.guidance_scale"
            )
        for key, encoders in self.text_widths().items():
            reads = self.text_width_of(key)
            widths = [width for encoder in encoders if (width := self.encoder_width(*encoder)) is not None]
            if reads is not None and len(widths) == len(encoders) and reads != sum(widths):
                raise UserError(
                    f"{self.folder}: its {self.network_part} reads text of {reads} numbers a token or prompt ({key}), "
                    f"but its {' and '.join(name for name, _ in encoders)} give{'s' * (len(encoders) == 1)} "
                    f"{sum(widths)}: take the encoders that it was trained with"
                )
        _ = self.latent_shape, self.diffusion

    @property
    def absent(self) -> dict[str, None]:
        """Components that the folder does without, as `from_pretrained` must be told."""
        return {
            name: None
            for name, entry in self.index.items()
            if isinstance(entry, list)
            and (entry[1] is None or (name in self.dispensable and not (self.folder / name).is_dir()))
        }

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network is told a guidance scale."""
        return False

    @property
    def longest(self) -> int | None:
        """Tokens that a prompt takes at most, or that every prompt takes where there is no mask; None: not known."""
        return None

    def tokens_of(self, name: str, otherwise: int) -> int:
        """The longest text of the tokenizer in the folder `name`, by its own settings."""
        path = self.folder / name / "tokenizer_config.json"
        settings = read_object(path, f"{self.folder}/{name} is incomplete") if path.is_file() else {}
        said = settings.get("model_max_length")
        return otherwise if said is None else int(min(said, otherwise))

    # -- text ----------------------------------------------------------------------------------------------------

    def text_widths(self) -> dict[str, list[tuple[str, str]]]:
        """By the network's setting that says how wide text it reads: the encoders whose widths add up to it, each with
        the name of its own setting. What is said nowhere is not compared."""
        return {}

    def text_width_of(self, key: str) -> int | None:
        """The width of text that the network reads, by its setting."""
        return self.network.get(key)

    def encoder_width(self, name: str, key: str) -> int | None:
        """A setting of the text encoder in the folder `name`."""
        path = self.folder / name / "config.json"
        said = read_object(path, f"{self.folder}/{name} is incomplete") if path.is_file() else {}
        return said.get(key) or (said.get("text_config") or {}).get(key)

    def encode(self, pipeline: Any, prompt: str | list[str], device: torch.device) -> PromptEmbeds:
        """One prompt's embeddings (a batch of one) by the pipeline's own encoders; '' is the null prompt. Of a list, in
        which that is not, a row each."""
        raise NotImplementedError

    # -- the network -----------------------------------------------------------------------------------------------

    def output(self, network: Any, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        """The network's output [B, C, h, w], in the meaning of `diffusion`, for x_t [B, C, h, w] and embeds of B rows.

        t [B] is in the schedule's own steps: what unit the network reads time in, is decided here.
        """
        raise NotImplementedError

    # -- plain diffusers -------------------------------------------------------------------------------------------

    def one_step_scheduler(self, one_step: OneStep) -> Any:
        """The scheduler of diffusers with which one step of the pipeline from noise is the generator, exactly.

        Raises UserError where there is none.
        """
        if is_flow_within_betas(self.diffusion, one_step):
            if self.last_layer is None:
                raise UserError(
                    f"model.prediction={one_step.diffusion.kind}: one step of {self.pipeline_class} cannot be that of "
                    "a flow, for its family names no last_layer: choose another prediction, or name it in model.family"
                )
            return flow_within_betas(one_step.t_star)
        return one_step_scheduler(self.scheduler, one_step, self.scheduler_of_sigma, self.one_step_shift)

    def call_arguments(self) -> dict[str, Any]:
        """What the pipeline's call needs beside prompt, steps and guidance to give what the trainer gives."""
        if self.resolution is None:
            return {}
        return dict(zip(("height", "width"), self.pixels, strict=True))

    def guidance_arguments(self, scale: float | None) -> dict[str, Any]:
        """The arguments with which the pipeline guides by alpha_cfg = `scale`, 1 or more; None: it guides not at all.

        Below 1 pipelines of diffusers do not guide whatever they are told: their image is that of 1.
        """
        return {"guidance_scale": scale or 0.0}

    def length_arguments(self, pipeline: Any, prompts: list[str]) -> dict[str, Any]:
        """Arguments that shorten the text where padding is masked, and costs time without changing an image."""
        return {}

    def packed(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] as the pipeline's call takes them."""
        return latents

    def unpacked(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] from what the pipeline gives at output_type='latent'."""
        return latents

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the images."""
        _, height, width = self.latent_shape
        return height * self.factor, width * self.factor
