"""Spare processes: ranks to be, with their libraries loaded, for those that are lost."""

import time
from collections import defaultdict
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dipp_ray.config import RunConfig
from dipp_ray.training.tasks import Role

ANSWER_S = 1.0  # a spare that does not answer within so long is still starting


class Spares:
    """They hold no room of their own: the placement group of the rank whose place one takes is its room. So they have
    no GPU, which is given to a process when it starts."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.kept: defaultdict[tuple[Role, str], list] = defaultdict(list)  # by role and node

    def take(self, role: Role, node: str) -> Any | None:
        """A process that can be a rank of this role on this node: one that is ready, or else one that is still
        starting, for it is ahead of a new one. None where there is neither."""
        spares = self.kept[role, node]
        asked = {actor.alive.remote(): actor for actor in spares}
        until = time.monotonic() + ANSWER_S
        while asked:
            ended, _ = ray.wait(list(asked), timeout=max(0.0, until - time.monotonic()))
            actor = asked.pop(ended[0]) if ended else next(iter(asked.values()))
            spares.remove(actor)
            try:
                if ended:
                    ray.get(ended[0])
                return actor
            except RayError:  # it is gone
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
