"""The pipeline folder of a run: a checkpoint's moving average, compared with the trainer's own x0."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dipp_ray.alignment.questions import generate
from dipp_ray.checkpoints.store import Checkpoint, CheckpointStore
from dipp_ray.config import RunConfig
from dipp_ray.data.prompts import Prompts
from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.errors import UserError
from dipp_ray.hub.fetch import local
from dipp_ray.models.adapters import merge_adapter
from dipp_ray.models.card import write_card
from dipp_ray.models.denoiser import Denoiser
from dipp_ray.models.export import adapter_error, export_error, take_weights, write_adapter, write_pipeline
from dipp_ray.models.families import Family
from dipp_ray.models.pipeline import frame_of, load_denoiser
from dipp_ray.models.reading import one_step_of_model
from dipp_ray.models.start import base_network, starting_network
from dipp_ray.models.text import REMEMBER, text_encoder
from dipp_ray.storage.aside import whole_file
from dipp_ray.training.controller import Controller

LARGEST_EXPORT_ERROR = 1e-4
EXPORTED = "exported.json"
COMPARED = 8  # samples


class Compared(NamedTuple):
    """What an export must give again: the trainer's x0 [B, C, h, w] of B prompts from the noises z of that shape."""

    prompts: list[str]
    z: Tensor
    x0: np.ndarray


def export_run(
    config: RunConfig,
    store: CheckpointStore,
    checkpoint: Checkpoint,
    prompts: Prompts,
    say: Callable[[str], None],
    controller: Controller | None = None,
) -> None:
    """Write run/pipeline from a checkpoint's moving average, and run/adapter where an adapter is trained, and compare
    their latents with the generator's: the live ranks', or, where none is alive any more, the checkpoint's in this
    process.

    Raises RuntimeError where they differ; the folder is not marked as exported then.
    """
    texts = prompts.first(COMPARED)
    if controller is None:
        compared = compared_here(config, store, checkpoint, texts)
    else:
        draws, z = noises(config, len(texts))
        # The exported folder's own encoders are what people have: stored embeddings may be rounded ones of theirs.
        if config.data.embeddings is not None:
            embeds = text_encoder(config, torch.device("cpu"), REMEMBER)(texts).arrays()
        else:
            (embeds,) = controller.encoded([prompts.spread(COMPARED)])
        (x0,) = controller.together("generator", "sample_average", [(draws, embeds)])[0]
        compared = Compared(texts, z, x0)
    out = export_checkpoint(config, store, checkpoint, config.path / "pipeline", compared, say)
    if config.adapters.generator is not None:
        export_adapter(config, store, checkpoint, config.path / "adapter", compared, say)
    with whole_file(out / EXPORTED) as aside:  # last: a stale or faulty export has none
        aside.write_text(json.dumps({"step": checkpoint.step}))


def compare(config: RunConfig, out: Path, error: float, say: Callable[[str], None]) -> None:
    """Say how far an export is from the trainer's x0. Raises RuntimeError where it is too far, or not a number."""
    say(f"exported {out}: its latents differ from the trainer's x0 by {error:.1e} (relative)")
    # In bf16 the trainer's own x0 is rounded, by how much depends on the network; but it is a number.
    bound = LARGEST_EXPORT_ERROR if config.roles.generator.dtype == "fp32" else sys.float_info.max
    if not error <= bound:
        raise RuntimeError(f"{out} does not reproduce the trainer's x0: {error:.1e} is not within {bound:.0e}")


def noises(config: RunConfig, count: int) -> tuple[Draws, Tensor]:
    """The draws of an export's samples, and their noises z [count, C, h, w]."""
    draws = Draws(config.run.seed, EVALUATION, 0, range(count))
    return draws, draws.normal("z", frame_of(config.model).latent_shape)


def compared_here(config: RunConfig, store: CheckpointStore, checkpoint: Checkpoint, prompts: list[str]) -> Compared:
    """What a checkpoint's generator makes of these prompts in this process, by the functions that the roles call."""
    _, z = noises(config, len(prompts))
    return Compared(prompts, z, generated(config, average_of(store, checkpoint), prompts, z))


@torch.no_grad()
def generated(config: RunConfig, weights: dict[str, Tensor], texts: list[str], z: Tensor) -> np.ndarray:
    """x0 [B, C, h, w] of the generator with these weights, by the functions that the roles call, on the CPU."""
    frame = frame_of(config.model)
    text = text_encoder(config, torch.device("cpu"), REMEMBER)
    one_step = one_step_of_model(frame, config.model)
    return generate(generator_of(config, frame, weights), one_step, z, text(texts)).numpy()


def generator_of(config: RunConfig, frame: Family, weights: dict[str, Tensor]) -> Denoiser:
    """The generator's network with trained weights, by parameter name."""
    if config.adapters.generator is None:  # all of it was trained: what it started from may be gone
        network = load_denoiser(config.model.teacher, config.roles.generator.dtype, frame=frame)
    else:
        network = starting_network(config, "generator", frame, frozen="fp32")
    take_weights(network.network, weights, config.model.teacher)
    return network


def exported_step(config: RunConfig) -> int | None:
    """The step whose weights lie, whole and checked, in the run's pipeline folder."""
    path = config.path / "pipeline" / EXPORTED
    return json.loads(path.read_text())["step"] if path.exists() else None


def export_checkpoint(
    config: RunConfig,
    store: CheckpointStore,
    checkpoint: Checkpoint,
    out: Path,
    compared: Compared,
    say: Callable[[str], None],
    published: str | None = None,
) -> Path:
    """A diffusers pipeline folder, with its model card, of a checkpoint's moving average; an adapter is merged.

    published: as `write_card`. Raises RuntimeError where the folder, in plain diffusers, does not give `compared`.
    """
    frame = frame_of(config.model)
    local(config.model.teacher)  # whose components are copied
    network = generator_of(config, frame, average_of(store, checkpoint)).network
    if config.adapters.generator is not None:
        merge_adapter(network)
    write_pipeline(frame, network, one_step_of_model(frame, config.model), out)
    del network  # the folder is about to be loaded
    write_card(out, frame, config, checkpoint.step, published=published)
    compare(config, out, export_error(out, *compared, frame_of(config.model, out)), say)
    return out


def export_adapter(
    config: RunConfig,
    store: CheckpointStore,
    checkpoint: Checkpoint,
    out: Path,
    compared: Compared,
    say: Callable[[str], None],
    published: str | None = None,
) -> Path:
    """The adapter alone of a checkpoint's moving average, with its card; else as `export_checkpoint`."""
    frame = frame_of(config.model)
    local(config.model.teacher)  # which it is compared in
    network = generator_of(config, frame, average_of(store, checkpoint)).network
    write_adapter(frame, network, one_step_of_model(frame, config.model), out)
    del network
    write_card(out, frame, config, checkpoint.step, adapter=True, published=published)
    compare(config, out, adapter_error(out, base_network(config, frame), *compared, frame), say)
    return out


def average_of(store: CheckpointStore, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The generator's moving average, by parameter name. Raises UserError where the checkpoint holds none."""
    tensors, _ = store.read_group(checkpoint, "generator", lambda name: name.startswith("ema/"))
    weights = {name.removeprefix("ema/"): value for name, value in tensors.items()}
    if not weights:
        raise UserError(f"the checkpoint of step {checkpoint.step} holds no moving average of the generator")
    return weights
