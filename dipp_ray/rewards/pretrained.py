"""Models of transformers from a local folder, every weight present."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dipp_ray.errors import UserError
from dipp_ray.rewards.weights import refuse_keys


def load_pretrained(kind: Any, folder: str | Path, what: str, unread: Sequence[str] = ()):
    """The model of class `kind` in a local folder, in fp32, from safetensors. Raises UserError.

    what: such as `CLIP model`, for the sentence. unread: beginnings of keys that may be there and are not read.
    """
    try:
        model, info = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, where the sentence names them
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the {what} in {folder} does not load: {' '.join(str(error).split())}") from error
    # transformers fills what is missing with random weights and only warns: such a reward would be noise.
    shapes = [f"{key} {list(given)} for {list(expected)}" for key, given, expected in info["mismatched_keys"]]
    unexpected = [key for key in info["unexpected_keys"] if not key.startswith(tuple(unread))]
    refuse_keys(folder, info["missing_keys"], unexpected, shapes)
    return model


def require_model(folder: str | Path, what: str, origin: str) -> None:
    """Raise UserError where the folder holds no model of transformers."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"there is no {what} in {folder} (no config.json): give a folder of {origin}")
