"""Local files and folders that are whole or not there: written aside, synced, then renamed into place.

A reader, a kill or a power cut at any moment finds the old one or the new one. What a killed process left aside is
overwritten by the next.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dipp_ray.errors import UserError


def aside_of(path: Path) -> Path:
    """Where `path` is written until it is whole."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def whole_file(path: Path, remedy: str = "free space or choose another place") -> Iterator[Path]:
    """Yields the path to write; the file appears under `path` when the block ends well, else nothing is left of it.

    Raises UserError with `remedy` where it cannot be written.
    """
    aside = aside_of(path)
    try:
        make_folder(path.parent)
        yield aside
        rename_file(aside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}: {remedy}") from None
    finally:
        with suppress(OSError):  # the error that matters is on its way up
            aside.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; it becomes `path` when the block ends well, else nothing is left of it."""
    aside = aside_of(path)
    shutil.rmtree(aside, ignore_errors=True)
    make_folder(aside)
    try:
        yield aside
        rename_folder(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def rename_file(aside: Path, path: Path) -> None:
    """Give the file `aside` its name: its bytes are on the disk before the name is, and the name when this returns."""
    sync(aside)
    os.replace(aside, path)
    sync(path.parent)


def rename_folder(whole: Path, path: Path) -> None:
    """Give the folder `whole` its name, its bytes on the disk before; a folder there goes only once this one is there.

    A cut between the two renames leaves the old folder beside it, as .NAME.old.
    """
    for folder, _, files in os.walk(whole):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
    os.rename(whole, path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make the folder and those above it that are missing; their names are on the disk when this returns."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def made_folder(folder: Path, remedy: str) -> Path:
    """The folder of `make_folder`: made before a command's work begins. Raises UserError with `remedy` where it cannot
    be."""
    try:
        make_folder(folder)
    except OSError as error:
        inside = next((path for path in (folder, *folder.parents) if path.is_file()), None)
        reason = f"{inside} is a file" if inside else error.strerror
        raise UserError(f"{folder} cannot be written: {reason}: {remedy}") from None
    return folder


def sync(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
