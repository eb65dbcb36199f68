"""The pipeline folder of a run: a checkpoint's moving average, compared with the trainer's own x0."""

import json
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
from dipp_ray.models.card import write_card
from dipp_ray.models.export import export_error, export_pipeline
from dipp_ray.models.pipeline import frame_of, load_denoiser, one_step_of
from dipp_ray.models.text import TextEncoder
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
    """Write run/pipeline from a checkpoint's moving average, and compare its latents with the generator's: the live
    ranks', or, where none is alive any more, the checkpoint's in this process.

    Raises RuntimeError where they differ; the folder is not marked as exported then.
    """
    out = export_checkpoint(config, store, checkpoint, config.path / "pipeline")
    frame = frame_of(config.model)
    texts = prompts.first(COMPARED)
    draws = Draws(config.run.seed, EVALUATION, 0, range(len(texts)))
    if controller is not None:
        batches = [(draws, embeds) for embeds in controller.encoded([texts])]
        (x0,) = controller.together("generator", "sample_average", batches)[0]
    else:
        x0 = generated(config, average_of(store, checkpoint), texts, draws)
    error = export_error(out, texts, draws.normal("z", frame.latent_shape), x0, frame_of(config.model, out))
    say(f"exported {out}: its latents differ from the trainer's x0 by {error:.1e} (relative)")
    if not error <= LARGEST_EXPORT_ERROR and config.roles.generator.dtype == "fp32":
        raise RuntimeError(
            f"{out} does not reproduce the trainer's x0: {error:.1e} is not within {LARGEST_EXPORT_ERROR}"
        )
    with whole_file(out / EXPORTED) as aside:  # last: a stale or faulty export has none
        aside.write_text(json.dumps({"step": checkpoint.step}))


@torch.no_grad()
def generated(config: RunConfig, weights: dict[str, Tensor], texts: list[str], draws: Draws) -> np.ndarray:
    """x0 [B, C, h, w] of the generator with these weights, by the functions that the roles call, on the CPU."""
    frame = frame_of(config.model)
    network = load_denoiser(config.model.teacher, config.roles.generator.dtype, frame=frame)
    network.network.load_state_dict(weights, strict=False)  # buffers are the teacher's
    text = TextEncoder(config.model.teacher, torch.device("cpu"), config.roles.text.dtype, frame=frame)
    one_step = one_step_of(frame, config.model.t_star, config.model.input)
    return generate(network, one_step, draws.normal("z", frame.latent_shape), text(texts)).numpy()


def exported_step(config: RunConfig) -> int | None:
    """The step whose weights lie, whole and checked, in the run's pipeline folder."""
    path = config.path / "pipeline" / EXPORTED
    return json.loads(path.read_text())["step"] if path.exists() else None


def export_checkpoint(
    config: RunConfig, store: CheckpointStore, checkpoint: Checkpoint, out: Path, published: str | None = None
) -> Path:
    """A diffusers pipeline folder of a checkpoint's moving average, with its model card; published: as `write_card`."""
    frame = frame_of(config.model)
    local(config.model.teacher)  # whose components are copied
    one_step = one_step_of(frame, config.model.t_star, config.model.input)
    export_pipeline(frame, average_of(store, checkpoint), one_step, out)
    write_card(out, frame, config, checkpoint.step, published)
    return out


def average_of(store: CheckpointStore, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The generator's moving average, by parameter name. Raises UserError where the checkpoint holds none."""
    tensors, _ = store.read_group(checkpoint, "generator")
    weights = {name.removeprefix("ema/"): value for name, value in tensors.items() if name.startswith("ema/")}
    if not weights:
        raise UserError(f"the checkpoint of step {checkpoint.step} holds no moving average of the generator")
    return weights
