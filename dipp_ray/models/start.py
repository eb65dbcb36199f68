"""The networks that a run trains, as they are at its start: whole, or frozen beside a LoRA."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from dipp_ray.config import RunConfig
from dipp_ray.errors import UserError
from dipp_ray.models.adapter_files import described, is_adapter, load_adapter
from dipp_ray.models.adapters import ADAPTABLE, adapted_modules, add_adapter, freeze_but_adapter, merge_adapter
from dipp_ray.models.components import empty_model
from dipp_ray.models.denoiser import DTYPES, Denoiser
from dipp_ray.models.families import Family
from dipp_ray.models.hollow import Put, put_whole
from dipp_ray.models.pipeline import load_denoiser, open_denoiser

GroupName = Literal["generator", "score"]


def starting_network(
    config: RunConfig, group: GroupName, frame: Family, put: Put = put_whole, frozen: str | None = None
) -> Denoiser:
    """The network that `group` trains, with gradients for what is trained, in eval mode.

    The generator is that of model.generator, or the teacher's; the score model is the teacher's. A LoRA as
    model.generator is trained on where adapters.generator is set, and otherwise merged into the teacher's weights.
    put: how each weight is laid down; of a network that a LoRA is merged into all are laid down whole first.
    frozen: 'fp32' or 'bf16', in the place of the role's own. Raises UserError as `check_adapters`.
    """
    role = getattr(config.roles, group)
    hollow, _ = open_denoiser(_base(config) if group == "generator" else config.model.teacher, frame)
    network = hollow.model
    _adapt(network, config, group, frame)
    if getattr(config.adapters, group) is None and adapted_modules(network):
        hollow.fill(lambda _: torch.float32)
        merge_adapter(network)
        network.requires_grad_(True)
    else:
        hollow.fill(kept_in(network, DTYPES[frozen or role.frozen_dtype]), put)
    return Denoiser(network, frame, DTYPES[role.dtype]).run_as(role)


def kept_in(network: nn.Module, frozen: torch.dtype) -> Callable[[nn.Parameter], torch.dtype]:
    """In which precision each parameter of a trained network is kept: in `frozen` those without gradients of linear and
    convolutional layers, all others in fp32.

    These are the layers of which autocast rounds the weights at each use: kept in bf16 from the start they give the
    same bits under it.
    """
    layers = (module for module in network.modules() if isinstance(module, ADAPTABLE))
    rounded = {id(p) for layer in layers for p in layer.parameters(recurse=False) if not p.requires_grad}
    return lambda parameter: frozen if id(parameter) in rounded else torch.float32


def base_network(config: RunConfig, frame: Family) -> Any:
    """The network of diffusers, fp32, that the generator's adapter is trained on."""
    return load_denoiser(_base(config), "fp32", frame=frame).network


def _base(config: RunConfig) -> str:
    given = config.model.generator
    return config.model.teacher if given is None or is_adapter(given) else given


def _adapt(network, config: RunConfig, group: GroupName, frame: Family) -> None:
    """Give a network the adapter that the group starts with, if it has one."""
    settings = getattr(config.adapters, group)
    if group == "generator" and config.model.generator and is_adapter(config.model.generator):
        load_adapter(network, config.model.generator, frame)
        freeze_but_adapter(network)
        if settings is not None:
            _refuse_another(network, config, frame)
    elif settings is not None:
        add_adapter(network, settings, frame.adapter_targets, config.run.seed, group)


def _refuse_another(network, config: RunConfig, frame: Family) -> None:
    """Raise UserError unless the adapter of model.generator is what adapters.generator says."""
    settings = config.adapters.generator
    assert settings is not None
    rank, alpha, modules = described(network)
    asked = empty_model(frame)
    add_adapter(asked, settings, frame.adapter_targets, config.run.seed, "generator")
    wanted = described(asked)
    if (rank, alpha, modules) == wanted:
        return
    has = f"rank {rank}, alpha {alpha:g}" if rank else "several ranks"
    raise UserError(
        f"{config.model.generator} adapts {len(modules)} modules with {has}, but adapters.generator says rank "
        f"{settings.rank}, alpha {settings.scaled_by:g} for {len(wanted[2])}: give it the same rank, alpha and "
        "targets, or leave adapters.generator out to train the whole network from it"
    )


def check_adapters(config: RunConfig, frame: Family) -> None:
    """Raise UserError, from names and shapes alone, where an adapter does not fit the teacher's network."""
    groups: tuple[GroupName, ...] = ("generator", "score")
    for group in groups:
        meta_network(config, group, frame)


def meta_network(config: RunConfig, group: GroupName, frame: Family) -> Any:
    """The network that `group` trains on the meta device, without weights, with gradients for what is trained."""
    network = empty_model(frame)
    _adapt(network, config, group, frame)
    if getattr(config.adapters, group) is None:
        network.requires_grad_(True)
    return network
