"""Folders that a command writes to: made before its work begins, so that a place that will not do is said at once."""

from pathlib import Path

from dipp_ray.errors import UserError


def made_folder(folder: Path, remedy: str) -> Path:
    """The folder, made with those above it where it is not there. Raises UserError with `remedy` where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        inside = next((path for path in (folder, *folder.parents) if path.is_file()), None)
        reason = f"{inside} is a file" if inside else error.strerror
        raise UserError(f"{folder} cannot be written: {reason}: {remedy}") from None
    return folder
