"""JSON of a model's folder: an object, or one sentence about the file that holds none."""

import json
from pathlib import Path

from dipp_ray.errors import UserError


def read_object(path: Path, otherwise: str) -> dict:
    """The JSON object in a file. Raises UserError that begins with `otherwise` where there is no file, or no object."""
    try:
        said = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{otherwise}: {path.name} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{otherwise}: {path.name} is not JSON ({error})") from None
    if not isinstance(said, dict):
        raise UserError(f"{otherwise}: {path.name} holds no JSON object")
    return said


def index_of(folder: Path) -> dict:
    """model_index.json, whose components must be names within the folder: exports are written under them.

    Raises UserError where `folder` is no pipeline's.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give a diffusers pipeline folder (one with model_index.json)")
    index = read_object(folder / "model_index.json", f"{folder} is no diffusers pipeline")
    for name, entry in index.items():
        if isinstance(entry, list) and not (
            name.isidentifier() and len(entry) == 2 and all(isinstance(part, str | None) for part in entry)
        ):
            raise UserError(f"{folder} is no diffusers pipeline: its model_index.json says {name}: {entry}")
    return index
