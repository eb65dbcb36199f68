"""LoRA in a network (Hu et al. 2021), by PEFT: W x + alpha / rank B A x, of which A and B alone are trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dipp_ray.config import AdapterSection
from dipp_ray.diffusion.noise import ADAPTER, Draws
from dipp_ray.errors import UserError

# The adapter's name in PEFT, as in `to_q.lora_A.default.weight`.
NAME = "default"
# Whose adapters are drawn apart, as repeats are.
GROUPS = ("generator", "score")
# What it can adapt.
ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Of a network's layers so many names are said.
NAMED = 8


def add_adapter(network: Any, settings: AdapterSection, targets: Sequence[str], seed: int, group: str) -> None:
    """Give the network a fresh adapter and freeze all else: at first it changes nothing, for B is 0.

    targets: the last parts of modules' names, where `settings` names none. A is drawn from N(0, 1/rank^2), as the
    training scripts of diffusers do, by `seed` and the group's name, so that every rank and every start has the same.
    Raises UserError where a target matches no module, or one that LoRA cannot adapt.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = settings.targets or targets
    refuse_strangers(network, targets, f"adapters.{group}.targets")
    alpha: Any = settings.scaled_by  # PEFT says int, and means a number
    config = LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")
    try:
        inject_adapter_in_model(config, network, NAME)
    except ValueError as error:
        raise UserError(f"adapters.{group}.targets: {' '.join(str(error).split())[:200]}") from None
    freeze_but_adapter(network)
    for index, matrix in enumerate(p for name, p in trained_weights(network) if ".lora_A." in name):
        if not matrix.is_meta:
            draws = Draws(seed, ADAPTER, GROUPS.index(group), [index])
            matrix.data.copy_(draws.normal("adapter", matrix.shape)[0] / settings.rank)


def refuse_strangers(network: nn.Module, targets: Sequence[str], setting: str) -> None:
    """Raise UserError unless each target is the last part of some module's name, and of such as LoRA can adapt."""
    modules = [(f".{name}", module) for name, module in network.named_modules() if name]
    for target in targets:
        found = [module for name, module in modules if name.endswith(f".{target}")]
        other = next((module for module in found if not isinstance(module, ADAPTABLE)), None)
        if other is not None:
            raise UserError(
                f"{setting}: '{target}' is a {type(other).__name__}, which LoRA cannot adapt: name linear or "
                "convolutional layers"
            )
        if not found:
            layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
            ends = sorted({".".join(name.split(".")[-2:]) if name[-1].isdigit() else name.split(".")[-1]
                           for name in layers})  # fmt: skip
            raise UserError(
                f"{setting}: '{target}' matches no module of the {type(network).__name__}; linear ones are called "
                f"{', '.join(ends[:NAMED])}{' and so on' if len(ends) > NAMED else ''}"
            )


def freeze_but_adapter(network: nn.Module) -> None:
    """Leave gradients to the adapter's weights alone."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def trained_weights(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are trained, with their names."""
    return [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]


@contextmanager
def adapter_off(network: nn.Module) -> Iterator[None]:
    """Run the network as it is without its adapter, to the bit."""
    layers = _adapted(network).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)  # which asks for gradients again


@torch.no_grad()
def merge_adapter(network: Any) -> None:
    """Add the adapter's product, alpha / rank B A, to the weights in their own precision, and take the adapter away."""
    for name, layer in _adapted(network).items():
        layer.merge(safe_merge=True)  # which refuses what is not finite
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, layer.get_base_layer())
    del network.peft_config
    network._hf_peft_config_loaded = False


def adapted_modules(network: nn.Module) -> set[str]:
    """The names of the modules that the network's adapter acts on."""
    return set(_adapted(network))


def _adapted(network: nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)}
