"""Checkpoint files as their authors published them, read without running anything in them, and loaded strictly."""

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from dipp_ray.errors import UserError

NAMED_KEYS = 3  # An error names so many of each kind, and counts the others.


def require_file(folder: str | Path, name: str, origin: str) -> Path:
    """The path of a file in a folder. Raises UserError, which says where the file comes from, if it is not there."""
    path = Path(folder) / name
    if not path.is_file():
        raise UserError(f"{name} is missing in {folder}: put there the file of {origin}")
    return path


def read_checkpoint(path: Path, key: str | None = None) -> dict[str, torch.Tensor]:
    """The state dict in a .pt or .pth file, on the CPU; with `key`, the one under that key if the file has it.

    Only tensors and containers are read, never code. Raises UserError for a file that holds anything else.
    """
    try:
        # A mapped file is read tensor by tensor; the format of torch before 1.6 cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not load as weights alone, so fetch the original file again: {reason}") from error
    if isinstance(content, Mapping) and key in content:
        content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict: give the original file")
    return dict(content)


def rename(key: str, patterns: Sequence[tuple[str, str]]) -> str:
    """The key after every (pattern, replacement) of regular expressions, one after the other."""
    for pattern, replacement in patterns:
        key = re.sub(pattern, replacement, key)
    return key


def fill(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    source: str | Path,
    dtype: torch.dtype | None = torch.float32,
) -> None:
    """Give a model that was built on the meta device its weights, copied to `dtype` on the CPU, then freeze it.

    dtype: None keeps each weight as it is. Built on meta, a model of a billion parameters costs neither the memory nor
    the time of a random start.
    Raises UserError where the keys or shapes are not exactly the model's.
    """
    refuse_mismatch(model.state_dict(), weights, source)
    kept = weights if dtype is None else {key: value.to(dtype, copy=True) for key, value in weights.items()}
    model.load_state_dict(kept, assign=True)
    for module in model.modules():
        # The only buffers of transformers' CLIP and BLIP; no checkpoint need hold them.
        positions = module._buffers.get("position_ids")
        if positions is not None:
            module.position_ids = torch.arange(positions.shape[-1]).expand(1, -1)
    model.requires_grad_(False).eval()


def refuse_mismatch(expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], source) -> None:
    """Raise UserError where two state dicts differ in keys or shapes."""
    shapes = [
        f"{key} {list(given[key].shape)} for {list(expected[key].shape)}"
        for key in expected
        if key in given and given[key].shape != expected[key].shape
    ]
    refuse_keys(source, expected.keys() - given.keys(), given.keys() - expected.keys(), shapes)


def refuse_keys(source, missing: Iterable[str], unexpected: Iterable[str], shapes: Iterable[str]) -> None:
    """Raise UserError if any weight is missing, not expected, or of another shape."""
    kinds = {"missing": sorted(missing), "unexpected": sorted(unexpected), "of another shape": sorted(shapes)}
    found = "; ".join(f"{kind}: {_first(keys)}" for kind, keys in kinds.items() if keys)
    if found:
        raise UserError(f"the weights in {source} are not those of this model, so give the original files: {found}")


def _first(keys: list[str]) -> str:
    rest = len(keys) - NAMED_KEYS
    return ", ".join(keys[:NAMED_KEYS]) + (f" and {rest} more" if rest > 0 else "")
