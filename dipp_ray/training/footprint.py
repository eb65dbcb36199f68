"""What a run takes, from shapes alone: each process in memory, by part; state kept elsewhere, and on disk.

What libraries take is not in it, nor what an allocator keeps that was given back.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from dipp_ray.config import RunConfig
from dipp_ray.models.components import empty_model, text_parameters
from dipp_ray.models.denoiser import DTYPES
from dipp_ray.models.families import Family
from dipp_ray.models.start import kept_in, meta_network
from dipp_ray.rewards.loading import weights_of_term
from dipp_ray.training.passes import decoding, guiding, training
from dipp_ray.training.sizes import Sizes
from dipp_ray.training.tasks import GROUPS, Role

FP32 = 4  # bytes
# fp32 numbers of each trained parameter in a checkpoint: master weight, two moments; the generator's average.
KEPT = {"generator": 4, "score": 3}
VAES_OWN = "the VAE's activations"
WRITTEN = "a checkpoint until it is written"
GENERATIONS = 2  # of state in memory: the newest complete one, and the one on its way


@dataclass(frozen=True)
class Footprint:
    """Of one group: its network's parameters, those of them that are trained, and bytes of one rank by part: in its own
    memory (its GPU's, where it has one), and in its node's, where `offload` says so."""

    group: Role
    parameters: int
    trained: int
    rank: dict[str, float]
    node: dict[str, float] = field(default_factory=dict)

    @property
    def state(self) -> int:
        """Bytes of the group's state in a checkpoint, or in one generation in memory."""
        return KEPT[self.group] * FP32 * self.trained


@dataclass(frozen=True)
class Held:
    """What one process of a role holds beside its libraries: bytes by part. unknown: what could not be told. node: what
    lies in its node's memory, and not in its GPU's."""

    role: str
    said: str
    parts: dict[str, float]
    unknown: tuple[str, ...] = ()
    node: dict[str, float] = field(default_factory=dict)

    @property
    def bytes(self) -> float:
        """Without what lies in the node's memory."""
        return sum(self.parts.values())


def footprints(config: RunConfig, frame: Family, sizes: Sizes) -> list[Footprint]:
    return [_footprint(config, frame, group, getattr(sizes, group)) for group in GROUPS]


def _footprint(config: RunConfig, frame: Family, group: Role, ranks: int) -> Footprint:
    role: Any = getattr(config.roles, group)
    network = meta_network(config, group, frame)  # type: ignore[arg-type]
    kept = kept_in(network, DTYPES[role.frozen_dtype])
    named = network.named_parameters()
    if getattr(config.adapters, group) is None:  # a LoRA that it starts from is merged
        named = ((name, p) for name, p in named if ".lora_" not in name)
    found = [(p.numel(), p.requires_grad, kept(p).itemsize) for _, p in named]
    parameters, trained = sum(size for size, *_ in found), sum(size for size, grown, _ in found if grown)
    kept_bytes = sum(size * each for size, _, each in found)
    stage = role.zero_stage
    share = FP32 * trained / ranks
    whole = FP32 * trained
    # Above stage 0 the optimiser steps a copy of its own part of the weights.
    weights, stepped = kept_bytes if stage < 3 else kept_bytes / ranks, share if stage else 0.0
    gradients, moments = share if stage >= 2 else whole, 2 * (share if stage else whole)
    average = share if group == "generator" else 0.0
    if role.offload is None:
        rank, node = {"weights": weights + stepped, "gradients": gradients, "moments": moments, "average": average}, {}
    else:
        away = weights if role.offload == "weights" else 0.0
        rank = {"weights": weights - away, "gradients": gradients}
        node = {"weights": away + stepped, "moments": moments, "average": average}
    return Footprint(group, parameters, trained, rank, node)


def held(config: RunConfig, frame: Family, sizes: Sizes) -> list[Held]:
    """What one process of each role holds, those of a shared reward service left out."""
    found = [*_groups(config, frame, sizes), *_rewards(config, frame), _text(config, frame)]
    if sizes.teacher:
        dtype = config.roles.teacher.dtype
        parameters = sum(p.numel() for p in empty_model(frame).parameters())
        said = f"{count(parameters)} parameters in {dtype}; each of {sizes.teacher}"
        found.append(_held("teacher", said, {"weights": parameters * DTYPES[dtype].itemsize}, guiding(config, frame)))
    return found


def _groups(config: RunConfig, frame: Family, sizes: Sizes) -> Iterator[Held]:
    for one in footprints(config, frame, sizes):
        role, ranks = getattr(config.roles, one.group), getattr(sizes, one.group)
        trained = "all trained" if one.trained == one.parameters else f"{count(one.trained)} of them trained"
        said = f"{count(one.parameters)} parameters, {trained}; each of {ranks} at ZeRO {role.zero_stage}"
        activations = training(config, frame, one.group, ranks)  # type: ignore[arg-type]
        node = {**one.node, WRITTEN: one.state / ranks}
        yield replace(_held(one.group, said, one.rank, activations), node=node)


def _rewards(config: RunConfig, frame: Family) -> Iterator[Held]:
    """Each term's process, and that of the VAE where it decodes for all of them."""
    if config.reward.shared or not config.reward.terms:
        return
    trains = config.objective.reward_scale > 0

    def vae(backward: bool) -> tuple[int, float | None]:
        role, checkpoint = config.roles.reward, config.reward.checkpoint_decoder
        return decoding(frame, config.micro_batch_size, backward, not role.gpus, checkpoint, role.dtype)

    for term in config.reward.terms:
        weights = {"weights": float(weights_of_term(term))}
        if config.reward.decode_once:
            yield Held(f"reward '{term.name}'", f"{term.model}; each replica", weights)
            continue
        parameters, activations = vae(trains and not term.held_out)
        parts = weights | {"VAE": float(FP32 * parameters)}
        said = f"{term.model} behind the VAE, {count(parameters)} parameters; each replica"
        yield _held(f"reward '{term.name}'", said, parts, activations, VAES_OWN)
    if config.reward.decode_once:
        parameters, activations = vae(trains)
        said = f"{count(parameters)} parameters; each replica"
        yield _held("reward's VAE", said, {"VAE": float(FP32 * parameters)}, activations, VAES_OWN)


def _text(config: RunConfig, frame: Family) -> Held:
    """The encoders, where no embeddings lie in a file, and the VAE, which shows samples."""
    rows = min(config.micro_batch_size, config.log.samples)
    vae, activations = decoding(frame, rows, False, not config.roles.text.gpus)
    parts = {"VAE": float(FP32 * vae)}
    if config.data.embeddings is None:
        parts = {"weights": float(text_parameters(frame) * DTYPES[config.roles.text.dtype].itemsize), **parts}
    return _held("text", "it", parts, activations, VAES_OWN)


def _held(role: str, said: str, parts: dict[str, float], activations: float | None, what: str = "activations") -> Held:
    if activations is None:
        return Held(role, said, parts, (what,))
    return Held(role, said, {**parts, what: float(activations)})


def footprint_lines(config: RunConfig, frame: Family, sizes: Sizes, processes: list[Held] | None = None) -> list[str]:
    """For a person: what a process of each role holds, what a step moves, and what a checkpoint and the state in memory
    take. processes: of `held`, found here where they are None."""
    lines = []
    for one in held(config, frame, sizes) if processes is None else processes:
        beside = "".join(f" and {what}" for what in one.unknown)
        away = f"; its node's memory {gigabytes(sum(one.node.values()))} ({_listed(one.node)})" if one.node else ""
        lines.append(f"{one.role}: {one.said} holds {gigabytes(one.bytes)}{beside} ({_listed(one.parts)}){away}")
    found = footprints(config, frame, sizes)
    state, keep = sum(one.state for one in found), config.checkpoint.keep
    if len(config.reward.terms) > 1 and not config.reward.shared and not config.reward.decode_once:
        lines.append(
            f"each of {len(config.reward.terms)} reward terms has a VAE of its own and decodes by itself; with "
            "reward.decode_once=true one process does it for all"
        )
    lines.append(latents_line(config, frame))
    lines.append(f"a checkpoint takes {gigabytes(state)}, and up to {keep + 2} lie there at a time")
    if config.checkpoint.memory_every:
        lines.append(
            f"state in memory takes {gigabytes(GENERATIONS * state)} on nodes without ranks, or twice that on those "
            "with ranks"
        )
    return lines


def _listed(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {gigabytes(value)}" for name, value in parts.items() if value)


def latents_line(config: RunConfig, frame: Family) -> str:
    """What travels between the roles besides embeddings: x0 of each repeat, and of the last one its three answers."""
    each = FP32 * math.prod(frame.latent_shape)
    answers = 2 + (config.objective.reward_scale > 0)
    step = config.data.batch_size * each * (config.objective.score_updates + answers)
    return f"latents: {gigabytes(each)} a sample; {gigabytes(step)} a step go from role to role"


def count(number: int) -> str:
    """'860 M', '2.6 B', '12,345'."""
    if number >= 1e9:
        return f"{number / 1e9:.1f} B"
    return f"{number / 1e6:.0f} M" if number >= 1e7 else f"{number:,}"


def gigabytes(size: float) -> str:
    if size < 1e5:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
