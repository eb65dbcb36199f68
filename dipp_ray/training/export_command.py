"""`dipp-ray export`: a checkpoint of a run as a diffusers pipeline folder, which may be pushed to the hub."""

from collections.abc import Callable
from pathlib import Path

from dipp_ray.checkpoints.store import Checkpoint, CheckpointStore
from dipp_ray.config import load_config
from dipp_ray.errors import UserError
from dipp_ray.hub.push import push_folder, repository
from dipp_ray.models.pipeline import one_step_of_folder
from dipp_ray.models.reading import recorded
from dipp_ray.storage.aside import made_folder
from dipp_ray.training.checkpoint_name import named
from dipp_ray.training.export import compared_here, export_adapter, export_checkpoint

# What the export is compared on: a run's own prompts may be gone. Two, for at 1,024 pixels each takes a CPU a minute.
PROMPTS = ["a red fox in the snow", "a lighthouse at night, seen from the sea"]


def push_command(
    checkpoint_path: str | Path,
    out: str | Path,
    to: str,
    private: bool,
    say: Callable[[str], None],
    adapter: bool = False,
) -> str:
    """Export as `export_command`, then upload the folder to the hub's repository 'org/name'; returns its address.

    Raises UserError as that, before anything is exported for what is no repository, and as `push_folder`.
    """
    named = repository(to)
    folder = export_command(checkpoint_path, out, say, adapter, named.repo)
    address = push_folder(folder, named, private, "One-step generator, trained by Diff-Instruct++")
    say(f"pushed to {address}")
    return address


def export_command(
    checkpoint_path: str | Path,
    out: str | Path,
    say: Callable[[str], None],
    adapter: bool = False,
    published: str | None = None,
) -> Path:
    """Export RUN (its latest checkpoint), RUN@best, or RUN/checkpoints/step_000200 to the folder `out`: a pipeline, or
    with `adapter` the LoRA alone; it is compared, in plain diffusers, with what the checkpoint's generator gives.

    Raises UserError where there is no such checkpoint, or `out` holds something else than an earlier export;
    RuntimeError where the export does not give the trainer's x0.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and (one_step_of_folder(out) or not any(out.iterdir()))):
        raise UserError(f"{out} exists and is no earlier export: nothing was overwritten; choose another folder")
    name = named(checkpoint_path)
    made_folder(out.parent, "choose another folder to export to")
    config = recorded(load_config(name.config))
    if adapter and config.adapters.generator is None:
        raise UserError(f"{config.run.name} trains all of its generator and has no adapter: leave --adapter out")
    store = CheckpointStore(config.checkpoint.url or f"{name.run}/checkpoints")
    checkpoint: Checkpoint | None
    if name.step is not None:
        checkpoint = store.require(name.step)
    elif name.best:
        checkpoint = _best(store)
    else:
        checkpoint = store.latest()
    if checkpoint is None:
        raise UserError(f"{checkpoint_path} holds no committed checkpoint: train it for `checkpoint.every` steps first")
    export = export_adapter if adapter else export_checkpoint
    say(f"exporting step {checkpoint.step} and comparing it with the trainer's x0 ...")
    return export(config, store, checkpoint, out, compared_here(config, store, checkpoint, PROMPTS), say, published)


def _best(store: CheckpointStore) -> Checkpoint | None:
    marked = store.best()
    if marked is not None:
        return store.at(marked.step)
    latest = store.latest()
    step, reward = ((latest.record.get("best") if latest else None) or [None, 0.0])[:2]
    if step == 0:
        raise UserError(
            f"no checkpoint of this run is marked as the best: at no step was the held-out reward above the start's, "
            f"{reward:.6g}; export RUN for its latest, or RUN/checkpoints/step_NNNNNN"
        )
    raise UserError("no checkpoint of this run is marked as the best: it has no held-out reward term")
