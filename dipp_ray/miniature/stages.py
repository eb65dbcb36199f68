"""Stages of a build: each built aside, sealed with its recipe and renamed into place."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from dipp_ray.storage.aside import whole_folder
from dipp_ray.storage.hashing import hash_of_json
from dipp_ray.storage.locks import in_turn

Progress = Callable[[str], None]
SEAL = "recipe.json"


def is_built(folder: Path, recipe: dict) -> bool:
    """Whether `folder` is a finished stage of just this recipe."""
    seal = folder / SEAL
    return seal.is_file() and json.loads(seal.read_text())["hash"] == hash_of_json(recipe)


def build_stage(folder: Path, recipe: dict, make: Callable[[Path], None], progress: Progress) -> bool:
    """Have `make` fill a folder aside, seal it and rename it to `folder`, unless it is built. True if it was made."""
    if is_built(folder, recipe):
        return False
    started = time.monotonic()
    with whole_folder(folder) as aside:
        make(aside)
        (aside / SEAL).write_text(json.dumps({"hash": hash_of_json(recipe), "recipe": recipe}, indent=2) + "\n")
    progress(f"miniature: {folder.name} built in {time.monotonic() - started:.1f} s")
    return True


def only_builder(root: Path, progress: Progress) -> AbstractContextManager[None]:
    """Hold the folder's lock, so that two programs that want the same miniature do not build it twice."""
    return in_turn(
        root / ".lock", lambda: progress(f"miniature: another program is building in {root}; waiting for it")
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator at `seed` inside, as before outside: networks draw their first weights from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
