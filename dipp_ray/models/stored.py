"""A model's weights on the disk, read tensor by tensor or a part of one: what is not asked for is never in memory."""

import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dipp_ray.checkpoints.tensors import NAMED, bytes_of
from dipp_ray.errors import UserError
from dipp_ray.models.weights import Tensor as Header
from dipp_ray.models.weights import WeightFiles, safetensors_header


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: its shape, and a reader of its elements [start, end) in their order, as the file has them.

    factor: by what its values are multiplied when they are read.
    """

    shape: tuple[int, ...]
    reader: Callable[[int, int], Tensor]
    factor: float = 1.0

    def read(self, dtype: torch.dtype) -> Tensor:
        """All of it, on the CPU, in memory of its own."""
        return self.part(0, math.prod(self.shape), dtype).reshape(self.shape)

    def part(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """Its elements [start, end), flat."""
        values = self.reader(start, end).to(dtype)
        return values if self.factor == 1 else values.mul_(self.factor)

    def times(self, factor: float) -> "Stored":
        return replace(self, factor=self.factor * factor)


def stored(files: WeightFiles) -> dict[str, Stored]:
    """The tensors of a model's files by name. Raises UserError as `WeightFiles.header`."""
    read = _of_safetensors if files.safe else _of_torch
    return {name: tensor for path in files.paths for name, tensor in read(path).items()}


def _of_safetensors(path: Path) -> dict[str, Stored]:
    return {name: Stored(said.shape, partial(_read, path, said)) for name, said in safetensors_header(path).items()}


def _read(path: Path, said: Header, start: int, end: int) -> Tensor:
    if said.dtype not in NAMED:
        raise UserError(f"{path} holds numbers of the kind {said.dtype}, which is not read here: take another file")
    values = torch.empty(end - start, dtype=NAMED[said.dtype])
    into, done = bytes_of(values), 0
    with path.open("rb", buffering=0) as file:  # no map of the file, whose pages would count as this process's
        file.seek(said.start + start * values.itemsize)
        while done < len(into):
            count = file.readinto(into[done:])
            if not count:
                raise UserError(f"{path} is cut: it ended while it was read: fetch it again")
            done += count
    return values


def _of_torch(path: Path) -> dict[str, Stored]:
    """Of a file by torch.save, which is mapped where its format can be."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} does not load as weights alone ({reason}): fetch it again") from None
    return {name: Stored(tuple(value.shape), partial(_cut, value)) for name, value in state.items()}


def _cut(value: Tensor, start: int, end: int) -> Tensor:
    return value.reshape(-1)[start:end].clone()
