"""Stages of a build: each built aside, sealed with its recipe and renamed into place; and progress lines."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

Progress = Callable[[str], None]
SEAL = "recipe.json"


def recipe_hash(recipe: dict) -> str:
    """SHA-256 of a recipe, which is made of JSON values."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def is_built(folder: Path, recipe: dict) -> bool:
    """Whether `folder` is a finished stage of just this recipe."""
    seal = folder / SEAL
    return seal.is_file() and json.loads(seal.read_text())["hash"] == recipe_hash(recipe)


def build_stage(folder: Path, recipe: dict, make: Callable[[Path], None], progress: Progress) -> bool:
    """Have `make` fill a folder aside, seal it and rename it to `folder`, unless it is built. True if it was made."""
    if is_built(folder, recipe):
        return False
    started = time.monotonic()
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    make(aside)
    (aside / SEAL).write_text(json.dumps({"hash": recipe_hash(recipe), "recipe": recipe}, indent=2) + "\n")
    if folder.exists():  # of another recipe
        shutil.rmtree(folder)
    os.rename(aside, folder)
    progress(f"miniature: {folder.name} built in {time.monotonic() - started:.1f} s")
    return True


@contextmanager
def only_builder(root: Path, progress: Progress) -> Iterator[None]:
    """Hold the folder's lock, so that two programs that want the same miniature do not build it twice."""
    with open(root / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"miniature: another program is building in {root}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator at `seed` inside, as before outside: networks draw their first weights from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars of transformers and diffusers for files that take milliseconds."""
    libraries = [library for library in (transformers_logging, diffusers_logging) if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


class Ticker:
    """A progress line every few seconds: what, how far, elapsed and remaining time."""

    EVERY_S = 5.0

    def __init__(self, progress: Progress, what: str, total: int):
        self.progress, self.what, self.total = progress, what, total
        self.started = self.told = time.monotonic()

    def tick(self, done: int, note: str = "") -> None:
        """`done` of `total` are done; `note` is added to the line."""
        now = time.monotonic()
        if now - self.told < self.EVERY_S:
            return
        self.told = now
        elapsed = now - self.started
        left = elapsed / done * (self.total - done)
        line = f"miniature: {self.what} {done}/{self.total}, {elapsed:.0f} s, {left:.0f} s left"
        self.progress(f"{line}, {note}" if note else line)
