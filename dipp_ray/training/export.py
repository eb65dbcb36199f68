"""The pipeline folder of a run: a checkpoint's moving average, compared with the trainer's own x0."""

import json
from collections.abc import Callable
from pathlib import Path

from dipp_ray.checkpoints.store import Checkpoint, CheckpointStore
from dipp_ray.config import RunConfig
from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.errors import UserError
from dipp_ray.models.card import write_card
from dipp_ray.models.export import export_error, export_pipeline
from dipp_ray.models.pipeline import frame_of, one_step_of
from dipp_ray.storage.aside import whole_file
from dipp_ray.training.controller import Controller

LARGEST_EXPORT_ERROR = 1e-4
EXPORTED = "exported.json"
COMPARED = 8  # samples


def export_run(
    config: RunConfig,
    store: CheckpointStore,
    checkpoint: Checkpoint,
    say: Callable[[str], None],
    controller: Controller | None = None,
) -> None:
    """Write run/pipeline from a checkpoint's moving average; with live roles its latents are compared."""
    out = export_checkpoint(config, store, checkpoint, config.path / "pipeline")
    if controller is not None:
        frame = frame_of(config.model)
        texts = controller.prompts.first(COMPARED)
        draws = Draws(config.run.seed, EVALUATION, 0, range(len(texts)))
        batches = [(draws, embeds) for embeds in controller.encoded([texts])]
        (x0,) = controller.together("generator", "sample_average", batches)[0]
        error = export_error(out, texts, draws.normal("z", frame.latent_shape), x0, frame_of(config.model, out))
        say(f"exported {out}: its latents differ from the trainer's x0 by {error:.1e} (relative)")
        if not error <= LARGEST_EXPORT_ERROR and config.roles.generator.dtype == "fp32":
            raise RuntimeError(
                f"{out} does not reproduce the trainer's x0: {error:.1e} is not within {LARGEST_EXPORT_ERROR}"
            )
    with whole_file(out / EXPORTED) as aside:  # last: a stale or faulty export has none
        aside.write_text(json.dumps({"step": checkpoint.step}))


def exported_step(config: RunConfig) -> int | None:
    """The step whose weights lie, whole and checked, in the run's pipeline folder."""
    path = config.path / "pipeline" / EXPORTED
    return json.loads(path.read_text())["step"] if path.exists() else None


def export_checkpoint(config: RunConfig, store: CheckpointStore, checkpoint: Checkpoint, out: Path) -> Path:
    """A diffusers pipeline folder, with its model card, of a checkpoint's moving average."""
    tensors, _ = store.read_group(checkpoint, "generator")
    weights = {name.removeprefix("ema/"): value for name, value in tensors.items() if name.startswith("ema/")}
    if not weights:
        raise UserError(f"the checkpoint of step {checkpoint.step} holds no moving average of the generator")
    frame = frame_of(config.model)
    export_pipeline(frame, weights, one_step_of(frame, config.model.t_star, config.model.input), out)
    write_card(out, frame, config, checkpoint.step)
    return out
