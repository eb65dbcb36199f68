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
