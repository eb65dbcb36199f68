"""Tensors as a safetensors stream, one tensor in memory at a time.

`safetensors.torch.save` builds the whole file in memory first; a share of a large model and its optimiser is several
times what the host can spare. The layout written here is the published one, and the library reads it back.
"""

import json
from collections.abc import Iterator

import torch

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def safetensors_chunks(tensors: dict[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
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
        flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data
