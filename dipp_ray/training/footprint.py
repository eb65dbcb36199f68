"""What the trained state of a run takes, from shapes alone: on each rank, in memory elsewhere, and on disk.

Activations, frozen weights of other roles and what libraries take are not in it.
"""

from dataclasses import dataclass

from dipp_ray.config import RunConfig
from dipp_ray.models.families import Family
from dipp_ray.models.start import meta_network
from dipp_ray.training.sizes import Sizes
from dipp_ray.training.tasks import GROUPS, Role

FP32 = 4  # bytes
# fp32 numbers of each trained parameter in a checkpoint: master weight, two moments; the generator's average.
KEPT = {"generator": 4, "score": 3}
GENERATIONS = 2  # of state in memory: the newest complete one, and the one on its way


@dataclass(frozen=True)
class Footprint:
    """Of one group: its network's parameters, those of them that are trained, and bytes of one rank by part."""

    group: Role
    parameters: int
    trained: int
    rank: dict[str, float]

    @property
    def state(self) -> int:
        """Bytes of the group's state in a checkpoint, or in one generation in memory."""
        return KEPT[self.group] * FP32 * self.trained


def footprints(config: RunConfig, frame: Family, sizes: Sizes) -> list[Footprint]:
    return [_footprint(config, frame, group, getattr(sizes, group)) for group in GROUPS]


def _footprint(config: RunConfig, frame: Family, group: Role, ranks: int) -> Footprint:
    named = meta_network(config, group, frame).named_parameters()  # type: ignore[arg-type]
    if getattr(config.adapters, group) is None:  # a LoRA that it starts from is merged
        named = ((name, p) for name, p in named if ".lora_" not in name)
    found = [(p.numel(), p.requires_grad) for _, p in named]
    parameters, trained = sum(size for size, _ in found), sum(size for size, grown in found if grown)
    stage = getattr(config.roles, group).zero_stage
    share = FP32 * trained / ranks
    whole = FP32 * trained
    weights = FP32 * parameters if stage < 3 else FP32 * parameters / ranks
    return Footprint(
        group,
        parameters,
        trained,
        {
            # Above stage 0 the optimiser steps a copy of its own part of the weights.
            "weights": weights + (share if stage else 0),
            "gradients": share if stage >= 2 else whole,
            "moments": 2 * (share if stage else whole),
            "average": share if group == "generator" else 0.0,
        },
    )


def footprint_lines(config: RunConfig, frame: Family, sizes: Sizes) -> list[str]:
    """For a person: what a rank holds, and what a checkpoint and the state in memory take."""
    found = footprints(config, frame, sizes)
    lines = []
    for one in found:
        role, ranks = getattr(config.roles, one.group), getattr(sizes, one.group)
        trained = "all trained" if one.trained == one.parameters else f"{count(one.trained)} of them trained"
        parts = ", ".join(f"{name} {gigabytes(value)}" for name, value in one.rank.items() if value)
        lines.append(
            f"{one.group}: {count(one.parameters)} parameters, {trained}; each of {ranks} at ZeRO {role.zero_stage} "
            f"holds {gigabytes(sum(one.rank.values()))} and activations ({parts})"
        )
    state, keep = sum(one.state for one in found), config.checkpoint.keep
    lines.append(f"a checkpoint takes {gigabytes(state)}, and up to {keep + 2} lie there at a time")
    if config.checkpoint.memory_every:
        lines.append(
            f"state in memory takes {gigabytes(GENERATIONS * state)} on nodes without ranks, or twice that on those "
            "with ranks"
        )
    return lines


def count(number: int) -> str:
    """'860 M', '2.6 B', '12,345'."""
    if number >= 1e9:
        return f"{number / 1e9:.1f} B"
    return f"{number / 1e6:.0f} M" if number >= 1e7 else f"{number:,}"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
