"""A network alone, without its pipeline, as one-step generators are published: a file, or a folder of its weights.

Its architecture is the teacher's, and must be by name and shape. A first part that all names share, such as `model.` or
`module.`, is a training script's wrapper and left out: a network has several modules at its top.
"""

from pathlib import Path
from typing import Any, TypeVar

import torch

from dipp_ray.errors import UserError
from dipp_ray.models.components import differences, hollow_model, refuse
from dipp_ray.models.families import Family
from dipp_ray.models.hollow import Hollow
from dipp_ray.models.stored import stored
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


def open_bare(path: str | Path, frame: Family, dtype: torch.dtype) -> Hollow:
    """The teacher's network, to be filled with the weights at `path`. Raises UserError as `check_bare`."""
    path = Path(path)
    return hollow_model(
        _class(frame), frame.folder / frame.network_part, unwrapped(stored(files_of(path, frame))), path, dtype
    )


def unwrapped(named: dict[str, Named]) -> dict[str, Named]:
    """The same under names without the first parts that all of them share."""
    first = {name.partition(".")[0] for name in named}
    if len(first) != 1 or not all("." in name for name in named):
        return named
    return unwrapped({name.partition(".")[2]: value for name, value in named.items()})


def _class(frame: Family) -> Any:
    import diffusers

    return getattr(diffusers, frame.network_class)
