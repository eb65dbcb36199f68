"""A network alone, without its pipeline, as one-step generators are published: a file, or a folder of its weights.

Its architecture is the teacher's, and must be by name and shape.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipp_ray.errors import UserError
from dipp_ray.models.components import differences, refuse
from dipp_ray.models.families import Family
from dipp_ray.models.weights import WeightFiles, find_weights


def is_bare(path: str | Path) -> bool:
    """Whether a path holds something, and that no pipeline."""
    path = Path(path)
    return path.exists() and not (path / "model_index.json").exists()


def files_of(path: Path, frame: Family) -> WeightFiles:
    """The weights at a path: a file of safetensors or torch, a folder of them, or one above the network's part."""
    if path.is_file():
        if path.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
            raise UserError(
                f"{path} is no file of weights that is known here: give safetensors, or .bin of tensors alone"
            )
        return WeightFiles((path,), path.suffix == ".safetensors")
    part = path / frame.network_part
    return find_weights(part if part.is_dir() else path, "diffusers")


def check_bare(path: str | Path, frame: Family) -> None:
    """Raise UserError, from headers, unless the weights at `path` are those of a network like the teacher's."""
    path = Path(path)
    held = {name: tensor.shape for name, tensor in files_of(path, frame).header().items()}
    refuse(path, *differences(_class(frame), frame.folder / frame.network_part, held))


def load_bare(path: str | Path, frame: Family, dtype: torch.dtype) -> Any:
    """The teacher's network, in eval mode, with the weights at `path` in `dtype`. Raises UserError as `check_bare`."""
    check_bare(path, frame)
    kind = _class(frame)
    network = kind.from_config(kind.load_config(frame.folder / frame.network_part))
    state = _tensors(files_of(Path(path), frame))
    network._fix_state_dict_keys_on_load(state)
    network.load_state_dict(state)
    return network.to(dtype).eval()


def _class(frame: Family) -> Any:
    import diffusers

    return getattr(diffusers, frame.network_class)


def _tensors(files: WeightFiles) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for path in files.paths:
        state |= load_file(path) if files.safe else torch.load(path, map_location="cpu", weights_only=True)
    return state
