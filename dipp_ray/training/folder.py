"""The folder of a run: it can be written, one process trains in it, and it stays while that one does."""

import shutil
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from dipp_ray.config import RunConfig
from dipp_ray.errors import RunFolderLost, UserError
from dipp_ray.reporting.metrics import FILE, MetricsLog
from dipp_ray.storage.cache import is_remote
from dipp_ray.storage.locks import Held, alone
from dipp_ray.storage.remote import require_store

LEAST_FREE_BYTES = 50_000_000
WRITTEN = ("", "samples", "tensorboard", "wandb", "checkpoints")  # what a run writes into, where it is there already


def check_folder(config: RunConfig) -> None:
    """Make the run's folder. Raises UserError where it cannot be, or be written, is full, or another trains in it, and
    where a store for it or for its checkpoints cannot be used."""
    require_store(config.place, "run.folder")
    require_store(config.checkpoints, "checkpoint.url")
    path = config.path
    require_writable(path, [path / FILE, path / ".lock"])
    free = shutil.disk_usage(path).free
    if free < LEAST_FREE_BYTES:
        raise UserError(
            f"run folder {path}: only {free / 1e6:.0f} MB are free on its disk: free some, or choose another"
        )
    with only_trainer(config):
        pass


def require_writable(path: Path, appended: Iterable[Path] = ()) -> None:
    """Make the folder of runs or of a run. Raises UserError where it, or what lies in it already, cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        for folder in (path / name for name in WRITTEN):
            if folder.is_dir():
                tempfile.TemporaryFile(dir=folder).close()
        for file in appended:
            if file.exists():
                file.open("a").close()
    except OSError as error:
        raise UserError(
            f"run folder {path} cannot be written ({error.strerror}): choose another run.folder, or make it yours"
        ) from None


def only_trainer(config: RunConfig) -> AbstractContextManager[Held]:
    """Hold the run's folder. Raises UserError where another process trains in it."""
    refusal = f"{config.path}: another process trains in this folder: wait for it, or set run.name"
    return alone(config.path / ".lock", refusal)


def require_folder(config: RunConfig, lock: Held, metrics: MetricsLog, done: int) -> None:
    """Raise RunFolderLost unless lock, metrics and configuration of a run that trains are where they were."""
    if lock.stays and metrics.stays and (config.path / "config.yaml").is_file():
        return
    left = (
        f"its checkpoints in {config.checkpoints} stay, and the same command goes on from the last one"
        if is_remote(config.checkpoints) or config.checkpoint.url
        else "the same command begins again, from a checkpoint if one is left"
    )
    raise RunFolderLost(
        f"{config.path} was removed or emptied while its run trained, with metrics and configuration (seen after step "
        f"{done}): {left}"
    )
