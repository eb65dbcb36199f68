"""The networks that a run trains, as they are at its start: whole, or frozen beside a LoRA."""

from typing import Any, Literal

from dipp_ray.config import RunConfig
from dipp_ray.errors import UserError
from dipp_ray.models.adapter_files import described, is_adapter, load_adapter
from dipp_ray.models.adapters import adapted_modules, add_adapter, freeze_but_adapter, merge_adapter
from dipp_ray.models.components import empty_model
from dipp_ray.models.denoiser import Denoiser
from dipp_ray.models.families import Family
from dipp_ray.models.pipeline import load_denoiser

GroupName = Literal["generator", "score"]


def starting_network(config: RunConfig, group: GroupName, frame: Family) -> Denoiser:
    """The network that `group` trains, with gradients for what is trained, in eval mode.

    The generator is that of model.generator, or the teacher's; the score model is the teacher's. A LoRA as
    model.generator is trained on where adapters.generator is set, and otherwise merged into the teacher's weights.
    Raises UserError as `check_adapters`.
    """
    dtype = getattr(config.roles, group).dtype
    network = load_denoiser(_base(config) if group == "generator" else config.model.teacher, dtype, frame=frame)
    _adapt(network.network, config, group, frame)
    if getattr(config.adapters, group) is None and adapted_modules(network.network):
        merge_adapter(network.network)
        network.requires_grad_(True)
    return network


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
