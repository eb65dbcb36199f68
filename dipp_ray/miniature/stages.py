"""Stages of a build: each built aside, sealed with its recipe and renamed into place."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """Have `make` fill a folder aside, seal it and rename it to `folder`, unless it is built. True if it was made.

    Two programs that want the same stage do not build it twice: the second waits for the first, and says so.
    """

    def waits() -> None:
        progress(f"miniature: another program is building {folder}; waiting for it")

    with in_turn(folder.with_name(f".{folder.name}.lock"), waits):
        if is_built(folder, recipe):
            return False
        started = time.monotonic()
        with whole_folder(folder) as aside:
            make(aside)
            (aside / SEAL).write_text(json.dumps({"hash": hash_of_json(recipe), "recipe": recipe}, indent=2) + "\n")
        progress(f"miniature: {folder.name} built in {time.monotonic() - started:.1f} s")
        return True


@contextmanager
def computing_threads(count: int) -> Iterator[None]:
    """torch with `count` threads inside: what comes out depends on it in its last bits, not on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator at `seed` inside, as before outside: networks draw their first weights from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
