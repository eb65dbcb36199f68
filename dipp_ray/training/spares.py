"""Spare processes: ranks to be, with their libraries loaded, for those that are lost."""

from collections import defaultdict
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dipp_ray.config import RunConfig
from dipp_ray.training.tasks import Role

ANSWER_S = 1.0  # a spare that does not answer within so long is still starting, or gone


class Spares:
    """They hold no room of their own: the placement group of the rank whose place one takes is its room. So they have
    no GPU, which is given to a process when it starts."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.kept: defaultdict[tuple[Role, str], list] = defaultdict(list)  # by role and node

    def take(self, role: Role, node: str) -> Any | None:
        """A process that can be a rank of this role on this node, or None."""
        spares = self.kept[role, node]
        for place, actor in enumerate(spares):
            try:
                if ray.wait([beat := actor.alive.remote()], timeout=ANSWER_S)[0]:
                    ray.get(beat)
                    return spares.pop(place)
            except RayError:
                continue
        return None

    def refill(self, role: Role, kind: Any, nodes: list[str]) -> None:
        """Have as many of this role as it has ranks on each of its nodes; they start beside the training."""
        if not self.config.roles.spares or getattr(self.config.roles, role).gpus:
            return
        for node in set(nodes):
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            lacking = nodes.count(node) - len(self.kept[role, node])
            found = [kind.options(num_cpus=0, scheduling_strategy=here).remote(self.config) for _ in range(lacking)]
            self.kept[role, node] += found

    def close(self) -> None:
        for actors in self.kept.values():
            for actor in actors:
                ray.kill(actor)
        self.kept.clear()
