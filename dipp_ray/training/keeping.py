"""Where each rank's share of the state in memory is kept, and which step's shares are complete: pure."""

from collections.abc import Collection, Iterable, Mapping

from dipp_ray.roles.keeper import ShareKey
from dipp_ray.training.tasks import GROUPS, Role

Worker = tuple[Role, int]  # (group, rank)


def keeper_nodes(ranks: Mapping[Worker, str], nodes: Collection[str]) -> dict[Worker, list[str]]:
    """The nodes that keep each rank's share, so that whichever single node is lost, every share is left.

    ranks: the node of each. nodes: all that live. A node without ranks is best: then one copy is enough. Where every
    node has ranks, a share is kept beside its rank and on the next node. On one node alone it outlives its process.
    """
    with_ranks = sorted(set(ranks.values()))
    spare = sorted(set(nodes) - set(with_ranks))
    found = {}
    for place, (worker, home) in enumerate(sorted(ranks.items())):
        following = with_ranks[(with_ranks.index(home) + 1) % len(with_ranks)]
        found[worker] = [spare[place % len(spare)]] if spare else list(dict.fromkeys([home, following]))
    return found


def complete_steps(kept: Iterable[ShareKey]) -> list[int]:
    """The steps after which the shares of all ranks of both groups are there, ascending."""
    found: dict[tuple[int, str, int], set[int]] = {}
    for key in kept:
        found.setdefault((key.step, key.group, key.world), set()).add(key.rank)
    whole = {(step, group) for (step, group, world), ranks in found.items() if len(ranks) == world}
    return sorted({step for step, _ in whole if all((step, group) in whole for group in GROUPS)})
