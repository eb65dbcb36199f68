"""LoRA as files: those that people hold (diffusers', kohya's, PEFT's), read into a network, and ours, written so that
the family's own loader in plain diffusers reads them back exactly.

diffusers knows an adapter's alpha by the metadata in its file alone: without them it takes the rank, in silence.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipp_ray.errors import UserError
from dipp_ray.hub.fetch import local
from dipp_ray.hub.selection import configurations
from dipp_ray.models.adapters import NAME, adapted_modules
from dipp_ray.models.components import silent
from dipp_ray.models.families import Family
from dipp_ray.models.weights import WeightFiles

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
PEFT_PREFIX = "base_model.model."
ENDINGS = (".safetensors", ".bin", ".pt")
NAMED = 3  # weights of a refused file
SAID = 160  # letters of what a library says of it


def is_adapter(path: str | Path) -> bool:
    """Whether a path, or a hub's id, holds a LoRA: a folder of PEFT or diffusers, or a file with such names."""
    path = local(path, configurations, within=True)
    if path.is_dir():
        return (path / PEFT_CONFIG).is_file() or (path / DIFFUSERS_WEIGHTS).is_file()
    return path.suffix in ENDINGS and path.is_file() and any("lora" in name for name in _header(path))


def _header(path: Path) -> dict[str, Any]:
    return WeightFiles((path,), path.suffix == ".safetensors").header()


def load_adapter(network: Any, path: str | Path, frame: Family) -> None:
    """Give the network of `frame` the LoRA at `path`, as trained weights beside its own.

    A network on the meta device is given the file's names and shapes alone. Raises UserError unless every weight of
    the file finds its place: one that is left over would be an effect that is lost in silence.
    """
    path = local(path, configurations, within=True)
    given = _peft_folder(network, path) if (path / PEFT_CONFIG).is_file() else _by_diffusers(network, path, frame)
    found = sum(".lora_" in name for name, _ in network.named_parameters())
    if found != given:
        raise UserError(
            f"{path}: of its {given} LoRA weights {found} belong to the {frame.network_class} of {frame.folder}: take "
            "one that was trained on this model"
        )


def _peft_folder(network: Any, path: Path) -> int:
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict

    if not (path / PEFT_WEIGHTS).is_file():
        raise UserError(f"{path} has {PEFT_CONFIG} but no {PEFT_WEIGHTS}: fetch it")
    state = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in _tensors(path / PEFT_WEIGHTS, network).items()}
    with _fitting(path, network):
        inject_adapter_in_model(PeftConfig.from_pretrained(str(path)), network, NAME)
        set_peft_model_state_dict(network, state, NAME)
    return len(state)


def _by_diffusers(network: Any, path: Path, frame: Family) -> int:
    import diffusers

    pipeline, part = getattr(diffusers, frame.pipeline_class), frame.network_part
    if not (hasattr(pipeline, "lora_state_dict") and hasattr(network, "load_lora_adapter")):
        raise UserError(
            f"{path}: {frame.pipeline_class} has no loader of LoRA files in diffusers: give a folder of PEFT's, with "
            f"{PEFT_CONFIG} and {PEFT_WEIGHTS}"
        )
    file = path / DIFFUSERS_WEIGHTS if path.is_dir() else path
    with silent("diffusers"), _fitting(path, network):
        state, *alphas, _ = pipeline.lora_state_dict(
            _tensors(file, network), unet_config=network.config, return_alphas=True, return_lora_metadata=True
        )
        beside = sorted(name for name in state if name.startswith("text_encoder"))
        if beside:
            raise UserError(
                f"{path}: it adapts text encoders too ({', '.join(beside[:NAMED])}), which are not trained here, so "
                "that it would not be the generator that it was made for: take one without"
            )
        network.load_lora_adapter(
            state,
            prefix=part if any(name.startswith(f"{part}.") for name in state) else None,
            network_alphas=next(iter(alphas), None) or None,
            metadata=_metadata(file),
            adapter_name=NAME,
        )
    return len(state)


@contextmanager
def _fitting(path: Path, network: Any) -> Iterator[None]:
    """What the libraries raise of a LoRA that is none, or is another network's, in one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")  # as is meant, in a check
            warnings.filterwarnings("ignore", "While injecting the PEFT adapters")  # what is missing is counted by us
            yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        reason = f"{reason[:SAID]} ..." if len(reason) > SAID else reason
        raise UserError(
            f"{path}: its LoRA does not fit the {type(network).__name__}: take one that was trained on this model "
            f"({reason})"
        ) from None


def _tensors(file: Path, network: Any) -> dict[str, Tensor]:
    """The file's tensors; for a network on the meta device its scalars, which are alphas, and of the others the shapes,
    as tensors that take no memory."""
    from safetensors import safe_open

    header = _header(file)
    if any("dora" in name or "magnitude" in name for name in header):
        raise UserError(f"{file} is a DoRA, whose magnitudes diffusers leaves out: take a LoRA")
    empty = next(network.parameters()).is_meta
    if file.suffix != ".safetensors":
        return torch.load(file, "cpu", weights_only=True, mmap=empty)
    with safe_open(file, "pt") as opened:
        return {
            name: torch.zeros(()).expand(tensor.shape) if empty and tensor.shape else opened.get_tensor(name)
            for name, tensor in header.items()
        }


def _metadata(file: Path) -> dict | None:
    """The adapter's configuration that diffusers writes into a safetensors file beside the weights, or None."""
    from safetensors import safe_open

    if file.suffix != ".safetensors":
        return None
    with safe_open(file, "pt") as opened:
        said = (opened.metadata() or {}).get("lora_adapter_metadata")
    return json.loads(said) if said else None


def save_adapter(network: Any, frame: Family, out: Path) -> None:
    """Write the network's adapter to the folder `out`: for the pipeline's own loader, or, where it has none, PEFT's."""
    import diffusers
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = {
        name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(network, adapter_name=NAME).items()
    }
    config = network.peft_config[NAME]
    pipeline, part = getattr(diffusers, frame.pipeline_class), frame.network_part
    if hasattr(pipeline, "save_lora_weights"):
        if part == "unet":
            state = convert_state_dict_to_diffusers(state)
        pipeline.save_lora_weights(
            out, **{f"{part}_lora_layers": state, f"{part}_lora_adapter_metadata": config.to_dict()}
        )
    else:
        config.save_pretrained(out)
        save_file({PEFT_PREFIX + name: tensor for name, tensor in state.items()}, out / PEFT_WEIGHTS)


def read_back(pipeline: Any, frame: Family, folder: Path) -> None:
    """Load an adapter of ours into a pipeline of plain diffusers, as its card says."""
    if (folder / PEFT_CONFIG).is_file():
        from peft import PeftModel

        network = PeftModel.from_pretrained(getattr(pipeline, frame.network_part), folder).merge_and_unload()
        setattr(pipeline, frame.network_part, network)
    else:
        with silent("diffusers"):  # that the text encoders have none
            pipeline.load_lora_weights(folder)


def described(network: Any) -> tuple[int | None, float, set[str]]:
    """Rank, alpha and adapted modules of a network's adapter; the rank is None where it has several."""
    config = network.peft_config[NAME]
    uniform = not (config.rank_pattern or config.alpha_pattern)
    return config.r if uniform else None, config.lora_alpha, adapted_modules(network)
