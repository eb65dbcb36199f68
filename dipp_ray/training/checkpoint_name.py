"""What a person calls a checkpoint: RUN (its latest), RUN@best, or RUN/checkpoints/step_000200; RUN may be s3://."""

import re
from dataclasses import dataclass
from pathlib import Path

from dipp_ray.errors import UserError
from dipp_ray.storage.cache import is_remote
from dipp_ray.storage.mirror import fetched

STEP_FOLDER = re.compile(r"step_(\d{6,})")
BEST = "@best"


@dataclass(frozen=True)
class Named:
    """step: of the checkpoint; None: the latest, or where `best` that which is marked as such. config: the run's
    recorded configuration, a file on this machine."""

    run: str
    step: int | None
    best: bool
    config: Path


def named(given: str | Path) -> Named:
    """Raises UserError where the run that it names is none. No library of models is loaded for that."""
    text = str(given).rstrip("/")
    best, text = text.endswith(BEST), text.removesuffix(BEST)
    step = STEP_FOLDER.fullmatch(text.rsplit("/", 1)[-1])
    beside = text.rsplit("/", 2)[0] if is_remote(text) else str(Path(text).parent.parent)
    run = beside if step else text
    config = fetched(f"{run}/config.yaml") if is_remote(run) else Path(run, "config.yaml")
    if config.is_file():
        return Named(run, int(step[1]) if step else None, best, config)
    name, _, mark = run.rpartition("@")
    if name and "/" not in mark:
        raise UserError(f"{run}: '@{mark}' marks nothing: write {name}{BEST}, or {name} for its latest checkpoint")
    raise UserError(f"{run} is no run's folder (no config.yaml): give RUN, RUN@best or RUN/checkpoints/step_NNNNNN")
