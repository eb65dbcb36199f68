"""The pipeline folder of a run: a checkpoint's moving average, compared with the trainer's own x0."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

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
from dipp_ray.models.text import text_encoder
from dipp_ray.storage.aside import whole_file
from dipp_ray.training.controller import Controller

LARGEST_EXPORT_ERROR = 1e-4
EXPORTED = "exported.json"
COMPARED = 8  # samples


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
    frame, texts = frame_of(config.model), prompts.first(COMPARED)
    draws = Draws(config.run.seed, EVALUATION, 0, range(len(texts)))
    z, weights = draws.normal("z", frame.latent_shape), average_of(store, checkpoint)
    if controller is not None:
        # The exported folder's own encoders are what people have: stored embeddings may be rounded ones of theirs.
        if config.data.embeddings is not None:
            embeds = text_encoder(config, torch.device("cpu"))(texts).arrays()
        else:
            (embeds,) = controller.encoded([prompts.spread(COMPARED)])
        (x0,) = controller.together("generator", "sample_average", [(draws, embeds)])[0]
    else:
        x0 = generated(config, weights, texts, z)
    out = export_checkpoint(config, store, checkpoint, config.path / "pipeline")
    compare(config, out, export_error(out, texts, z, x0, frame_of(config.model, out)), say)
    if config.adapters.generator is not None:
        adapter = export_adapter(config, store, checkpoint, config.path / "adapter")
        base = base_network(config, frame)
        compare(config, adapter, adapter_error(adapter, base, texts, z, x0, frame), say)
    with whole_file(out / EXPORTED) as aside:  # last: a stale or faulty export has none
        aside.write_text(json.dumps({"step": checkpoint.step}))


def compare(config: RunConfig, out: Path, error: float, say: Callable[[str], None]) -> None:
    """Say how far an export is from the trainer's x0. Raises RuntimeError where it is too far, or not a number."""
    say(f"exported {out}: its latents differ from the trainer's x0 by {error:.1e} (relative)")
    # In bf16 the trainer's own x0 is rounded, by how much depends on the network; but it is a number.
    bound = LARGEST_EXPORT_ERROR if config.roles.generator.dtype == "fp32" else sys.float_info.max
    if not error <= bound:
        raise RuntimeError(f"{out} does not reproduce the trainer's x0: {error:.1e} is not within {bound:.0e}")


@torch.no_grad()
def generated(config: RunConfig, weights: dict[str, Tensor], texts: list[str], z: Tensor) -> np.ndarray:
    """x0 [B, C, h, w] of the generator with these weights, by the functions that the roles call, on the CPU."""
    frame = frame_of(config.model)
    text = text_encoder(config, torch.device("cpu"))
    one_step = one_step_of_model(frame, config.model)
    return generate(generator_of(config, frame, weights), one_step, z, text(texts)).numpy()


def generator_of(config: RunConfig, frame: Family, weights: dict[str, Tensor]) -> Denoiser:
    """The generator's network with trained weights, by parameter name."""
    if config.adapters.generator is None:  # all of it was trained: what it started from may be gone
        network = load_denoiser(config.model.teacher, config.roles.generator.dtype, frame=frame)
    else:
        network = starting_network(config, "generator", frame)
    take_weights(network.network, weights, config.model.teacher)
    return network


def exported_step(config: RunConfig) -> int | None:
    """The step whose weights lie, whole and checked, in the run's pipeline folder."""
    path = config.path / "pipeline" / EXPORTED
    return json.loads(path.read_text())["step"] if path.exists() else None


def export_checkpoint(
    config: RunConfig, store: CheckpointStore, checkpoint: Checkpoint, out: Path, published: str | None = None
) -> Path:
    """A diffusers pipeline folder, with its model card, of a checkpoint's moving average; an adapter is merged.

    published: as `write_card`.
    """
    frame = frame_of(config.model)
    local(config.model.teacher)  # whose components are copied
    network = generator_of(config, frame, average_of(store, checkpoint)).network
    if config.adapters.generator is not None:
        merge_adapter(network)
    write_pipeline(frame, network, one_step_of_model(frame, config.model), out)
    write_card(out, frame, config, checkpoint.step, published=published)
    return out


def export_adapter(
    config: RunConfig, store: CheckpointStore, checkpoint: Checkpoint, out: Path, published: str | None = None
) -> Path:
    """The adapter alone of a checkpoint's moving average, with its card. Raises UserError where none is trained."""
    if config.adapters.generator is None:
        raise UserError(f"{config.run.name} trains all of its generator and has no adapter: leave --adapter out")
    frame = frame_of(config.model)
    network = generator_of(config, frame, average_of(store, checkpoint)).network
    write_adapter(frame, network, one_step_of_model(frame, config.model), out)
    write_card(out, frame, config, checkpoint.step, adapter=True, published=published)
    return out


def average_of(store: CheckpointStore, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The generator's moving average, by parameter name. Raises UserError where the checkpoint holds none."""
    tensors, _ = store.read_group(checkpoint, "generator", lambda name: name.startswith("ema/"))
    weights = {name.removeprefix("ema/"): value for name, value in tensors.items()}
    if not weights:
        raise UserError(f"the checkpoint of step {checkpoint.step} holds no moving average of the generator")
    return weights
