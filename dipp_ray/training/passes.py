"""What the passes of a run's networks take beside weights and state: activations, found from shapes alone."""

from collections.abc import Callable
from typing import Any

import torch

from dipp_ray.config import RunConfig
from dipp_ray.data.embeddings import Embeddings
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.models.activations import Passes, decoder_passes, denoiser_passes
from dipp_ray.models.components import empty_model
from dipp_ray.models.denoiser import DTYPES
from dipp_ray.models.families import Family
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.start import GroupName, kept_in, meta_network


def training(config: RunConfig, frame: Family, group: GroupName, ranks: int) -> float | None:
    """Bytes at most in one rank of a group; None where it cannot be told without values."""
    role, embeds = getattr(config.roles, group), _row(config, frame)
    if embeds is None:
        return None
    compute = DTYPES[role.dtype]

    def passes(rows: int, backward: bool) -> Passes:
        network = meta_network(config, group, frame)
        if role.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        kept = kept_in(network, DTYPES[role.frozen_dtype])
        return denoiser_passes(network, frame, compute, kept, rows, embeds, backward, not role.gpus)

    def found() -> float:
        rows = config.micro_batch_size
        both = passes(rows, True)
        if group == "score":
            asked = passes(_guided_rows(config), False).peak if config.teacher_in_score else 0
            return max(both.peak, asked)
        # Where graphs are kept those of all micro-batches of a rank's step wait for their backward.
        graphs = 1 if role.zero_stage == 3 or role.recompute else config.data.micro_batches // ranks
        return both.peak + (graphs - 1) * both.graph

    return _told(found)


def guiding(config: RunConfig, frame: Family) -> float | None:
    """The same of one teacher of the pool."""
    role, embeds = config.roles.teacher, _row(config, frame)
    dtype = DTYPES[role.dtype]
    if embeds is None:
        return None
    return _told(
        lambda: (
            denoiser_passes(
                empty_model(frame),
                frame,
                dtype,
                lambda _: dtype,
                _guided_rows(config),
                embeds,
                False,
                not role.gpus,
                dtype,
            ).peak
        )
    )


def decoding(
    frame: Family, rows: int, backward: bool, on_cpu: bool, checkpoint: bool = False, dtype: str = "fp32"
) -> tuple[int, float | None]:
    """(parameters of the folder's VAE, bytes at most of decoding so many latents with arithmetic in `dtype`)."""
    decoder = LatentDecoder.empty(frame.vae, checkpoint)
    parameters = sum(p.numel() for p in decoder.parameters())
    compute = DTYPES[dtype]
    return parameters, _told(lambda: decoder_passes(decoder, frame.latent_shape, rows, backward, on_cpu, compute).peak)


def _guided_rows(config: RunConfig) -> int:
    return config.micro_batch_size * (1 if config.objective.guidance_scale == 1 else 2)


def _told(find: Callable[[], float]) -> float | None:
    try:
        return find()
    except Exception:  # whatever an operation raises that needs values: an estimate fails no check
        return None


def _row(config: RunConfig, frame: Family) -> PromptEmbeds | None:
    """Embeddings of one prompt by their shapes, at their longest, in fp32 as networks have them; None: unknown."""
    if config.data.embeddings is not None:
        return Embeddings(config.data.embeddings).null.to("cpu", torch.float32)
    widths = [frame.text_width_of(key) for key in frame.text_widths()]
    if frame.longest is None or not widths or widths[0] is None:
        return None
    pooled: Any = torch.zeros(1, sum(width or 0 for width in widths[1:])) if widths[1:] else None
    return PromptEmbeds(
        torch.zeros(1, frame.longest, widths[0]), torch.ones(1, frame.longest, dtype=torch.int64), pooled
    )
