"""The state of an unfinished fit in a folder: safetensors by parameter name, and JSON that is written last.

model.safetensors      weights
optimiser.safetensors  AdamW's two moments and its count of updates, for each parameter
state.json             updates done, history, running loss; and size and SHA-256 of the other two
"""

import json
from pathlib import Path

import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file

from dipp_ray.checkpoints.tensors import safetensors_chunks
from dipp_ray.storage.files import write_file
from dipp_ray.storage.hashing import hash_of_file

STATE = "state.json"
WEIGHTS = "model.safetensors"
MOMENTS = "optimiser.safetensors"
FULL = "free some, and give the same command again: it goes on from the last checkpoint"


def save_state(folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, state: dict) -> None:
    """Leave the state in `folder`. `state` is JSON. Raises UserError when the disk is full."""
    fs, files = LocalFileSystem(), {}
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[parameter]}/{key}": value
        for parameter, values in optimiser.state.items()
        for key, value in values.items()
    }
    for name, tensors in ((WEIGHTS, model.state_dict()), (MOMENTS, moments)):
        files[name] = write_file(fs, f"{folder}/{name}", safetensors_chunks(tensors), FULL)
    write_file(fs, f"{folder}/{STATE}", [json.dumps(state | {"files": files}).encode()], FULL)


def load_state(folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> dict:
    """Bring model and optimiser to the state in `folder`, to the bit; returns its JSON."""
    model.load_state_dict(load_file(Path(folder) / WEIGHTS))
    moments = load_file(Path(folder) / MOMENTS)
    named = dict(model.named_parameters())
    for key, value in moments.items():
        name, _, kind = key.rpartition("/")
        # AdamW keeps its count on the CPU, whatever the device.
        optimiser.state[named[name]][kind] = value if kind == "step" else value.to(named[name].device)
    return json.loads((Path(folder) / STATE).read_text())


def whole_state(folder: Path) -> dict | None:
    """The JSON of the state in `folder` if every file of it is there and undamaged, else None."""
    try:
        state = json.loads((Path(folder) / STATE).read_text())
        for name, (size, sha256) in state["files"].items():
            path = Path(folder) / name
            if path.stat().st_size != size or hash_of_file(path) != sha256:
                return None
        return state
    except (OSError, ValueError, KeyError, TypeError):
        return None


def latest_state(root: Path) -> tuple[Path, dict] | None:
    """The folder of the newest whole state below `root`, at any depth of two, and its JSON; or None."""
    found = []
    for path in root.glob(f"*/*/{STATE}"):
        try:
            found.append((json.loads(path.read_text())["step"], path.parent))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # cut off in the writing
    for _, folder in sorted(found, reverse=True):
        if (state := whole_state(folder)) is not None:
            return folder, state
    return None
