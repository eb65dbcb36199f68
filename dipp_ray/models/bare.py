"""A network alone, without its pipeline, as one-step generators are published: a file, or a folder of its weights.

Its architecture is the teacher's, and must be by name and shape. A first part that all names share, such as `model.` or
`module.`, is a training script's wrapper and left out: a network has several modules at its top.
"""

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dipp_ray.errors import UserError
from dipp_ray.models.components import differences, refuse
from dipp_ray.models.families import Family
from dipp_ray.models.weights import WeightFiles, find_weights

Named = TypeVar("Named")


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
    folder = part if part.is_dir() else path
    # A training script's folder has pytorch_model.bin, as those of transformers.
    trained = (folder / "pytorch_model.bin").is_file() and not any(folder.glob("diffusion_pytorch_model*"))
    return find_weights(folder, "transformers" if trained else "diffusers")


def check_bare(path: str | Path, frame: Family) -> None:
    """Raise UserError, from headers, unless the weights at `path` are those of a network like the teacher's."""
    path = Path(path)
    held = unwrapped({name: tensor.shape for name, tensor in files_of(path, frame).header().items()})
    refuse(path, *differences(_class(frame), frame.folder / frame.network_part, held))


def load_bare(path: str | Path, frame: Family, dtype: torch.dtype) -> Any:
    """The teacher's network, in eval mode, with the weights at `path` in `dtype`. Raises UserError as `check_bare`."""
    check_bare(path, frame)
    kind = _class(frame)
    network = kind.from_config(kind.load_config(frame.folder / frame.network_part))
    state = unwrapped(_tensors(files_of(Path(path), frame)))
    network._fix_state_dict_keys_on_load(state)
    network.load_state_dict(state)
    return network.to(dtype).eval()


def unwrapped(named: dict[str, Named]) -> dict[str, Named]:
    """The same under names without the first parts that all of them share."""
    first = {name.partition(".")[0] for name in named}
    if len(first) != 1 or not all("." in name for name in named):
        return named
    return unwrapped({name.partition(".")[2]: value for name, value in named.items()})


def _class(frame: Family) -> Any:
    import diffusers

    return getattr(diffusers, frame.network_class)


def _tensors(files: WeightFiles) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for path in files.paths:
        state |= load_file(path) if files.safe else torch.load(path, map_location="cpu", weights_only=True)
    return state
