"""Tensors as a safetensors stream, written and read with one tensor in memory at a time.

`safetensors.torch.save` builds the whole file in memory first; a share of a large model and its optimiser is several
times what the host can spare. The layout written here is the published one, and the library reads it back.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dipp_ray.storage.files import BLOCK, Damaged, FileRecord

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
NAMED = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class Kept:
    """One tensor of a file: its name, and what it is."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def empty(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype)


def safetensors_chunks(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file of `tensors` (any shapes, any device), header first.

    Raises TypeError for a dtype that the format does not hold.
    """
    # Widest elements first keeps every tensor aligned, as the library itself does; then by name, so that equal
    # tensors give equal files.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name}: safetensors holds no {tensor.dtype}")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield bytes_of(tensors[name].detach().to("cpu").contiguous())


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU: to read, or to fill."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


class TensorFile:
    """An open safetensors file of a checkpoint, read once from its beginning to its end.

    `kept`: its tensors, in their order. Raises Damaged, now or by the end of `tensors`, where the bytes are not those
    of `record`.
    """

    def __init__(self, file: BinaryIO, path: str, record: FileRecord):
        self._file, self._path, self._record = file, path, record
        self._digest, self._left = hashlib.sha256(), record.size
        length = int.from_bytes(self._take(8), "little")
        if length > self._left:
            raise Damaged(path)
        try:
            self.kept = _header(self._take(length), self._left)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Damaged(path) from None

    def tensors(self, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[Kept, Tensor]]:
        """Those whose names are wanted, each in a tensor of its own on the CPU; the others are read over.

        The last one is given before the checksum is known: nothing counts until the iteration has ended.
        """
        for one in self.kept:
            if wanted(one.name):
                tensor = one.empty()
                self._fill(bytes_of(tensor))
                yield one, tensor
                del tensor
            else:
                for start in range(0, one.size, BLOCK):
                    self._take(min(BLOCK, one.size - start))
        if self._file.read(1) or self._digest.hexdigest() != self._record.sha256:
            raise Damaged(self._path)

    def _take(self, size: int) -> bytes:
        content = bytearray(size)
        self._fill(memoryview(content))
        return bytes(content)

    def _fill(self, into: memoryview) -> None:
        if len(into) > self._left:
            raise Damaged(self._path)
        self._left -= len(into)
        for start in range(0, len(into), BLOCK):
            part = into[start : start + BLOCK]
            done = 0
            while done < len(part):
                content = self._file.read(len(part) - done)
                if not content:
                    raise Damaged(self._path)
                part[done : done + len(content)] = content
                done += len(content)
            self._digest.update(part)


def _header(text: bytes, size: int) -> list[Kept]:
    """The tensors of a header in the order of their bytes, which follow each other and are `size` in all."""
    entries: dict[str, Any] = json.loads(text)
    entries.pop("__metadata__", None)
    kept, end = [], 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1]["data_offsets"], item[0])):
        one = Kept(name, NAMED[entry["dtype"]], tuple(entry["shape"]))
        if any(not isinstance(side, int) or side < 0 for side in one.shape):
            raise ValueError(f"{name}: shape {one.shape}")
        if entry["data_offsets"] != [end, end + one.size]:
            raise ValueError(f"{name}: {entry['data_offsets']}")
        end += one.size
        kept.append(one)
    if end != size:
        raise ValueError(f"{size} bytes, of which the header names {end}")
    return kept
