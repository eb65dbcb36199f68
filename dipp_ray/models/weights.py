"""The files that hold a model's weights: found, and read as far as their headers. No tensor is loaded here."""

import json
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from dipp_ray.errors import UserError
from dipp_ray.storage.weight_names import STEMS, chosen_weights

LARGEST_HEADER = 100_000_000  # bytes; that of a real one is a few hundred thousand
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Tensor:
    """What a header says of one tensor. dtype as safetensors spells it ('F32'); None where it is not said. start: where
    its bytes begin in a file of safetensors."""

    shape: tuple[int, ...]
    dtype: str | None
    start: int = 0


@dataclass(frozen=True)
class WeightFiles:
    """One model's weights in a folder. variant: 'fp16' and the like, which stands in the files' names, or None."""

    paths: tuple[Path, ...]
    safe: bool  # safetensors; otherwise torch's own, which is read by weights_only
    variant: str | None = None
    index: Path | None = None  # of shards

    @property
    def all(self) -> tuple[Path, ...]:
        return self.paths if self.index is None else (*self.paths, self.index)

    def header(self) -> dict[str, Tensor]:
        """Every tensor's shape by name.

        Raises UserError for a file that is cut, a git-lfs pointer, or holds more than tensors.
        """
        read = safetensors_header if self.safe else _torch_header
        return {name: tensor for path in self.paths for name, tensor in read(path).items()}


def find_weights(folder: Path, library: str) -> WeightFiles:
    """The weights in a model's folder: safetensors before .bin, whole ones before a variant's such as fp16.

    Raises UserError where there are none, or shards are missing of those that the index names.
    """
    chosen = chosen_weights({path.name for path in folder.glob("*") if path.is_file()}, library)
    if chosen is not None:
        name, safe, variant = chosen
        path = folder / name
        if ".index." in name:
            return WeightFiles(_shards(path), safe, variant, path)
        return WeightFiles((path,), safe, variant)
    raise UserError(
        f"{folder} holds no weights that are known here ({STEMS[library][0]}.safetensors, a variant or shards of it, "
        f"or {STEMS[library][1]}.bin): fetch them, or take another folder"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{index} is no index of shards (is it a git-lfs pointer?): fetch it again") from None
    shards = tuple(index.parent / name for name in names)
    missing = [path.name for path in shards if path.name not in names or not path.is_file()]
    if missing:
        raise UserError(
            f"{index.parent}: of the {len(names)} shards that its index names, {missing[0]} is missing: fetch it"
        )
    return shards


def safetensors_header(path: Path) -> dict[str, Tensor]:
    """Every tensor's shape and dtype in a safetensors file, from its header, which must fit the file's length."""
    size = path.stat().st_size
    refuse_pointer(path)
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(LARGEST_HEADER, size - 8):
            raise UserError(f"{path} is no safetensors file, or cut within its header: fetch it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {
                name: Tensor(tuple(said["shape"]), said["dtype"], 8 + length + said["data_offsets"][0])
                for name, said in header.items()
            }
            end = 8 + length + max((said["data_offsets"][1] for said in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise UserError(f"{path} is no safetensors file (its header is none): fetch it again") from None
    if end != size:
        raise UserError(f"{path} is cut: its header speaks of {end} bytes, and it has {size}: fetch it again")
    return tensors


def _torch_header(path: Path) -> dict[str, Tensor]:
    """The same of a file by torch.save, whose pickle is read by weights_only, its tensors left on the disk."""
    import pickle

    import torch

    refuse_pointer(path)
    mapped = zipfile.is_zipfile(path)
    try:
        state = torch.load(path, map_location="cpu" if mapped else "meta", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors, and such a pickle is never opened: take safetensors of it"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is cut, or no file of torch ({reason}): fetch it again") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} is no dictionary of tensors by name: take the weights alone")
    return {name: Tensor(tuple(value.shape), None) for name, value in state.items()}


def refuse_pointer(path: Path) -> None:
    """Raise UserError where a file is what git-lfs leaves in its place."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its repository")
