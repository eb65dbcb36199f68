"""What chaos does: the cells of its table, and the strike of one of them."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

# Where sizes change, sums are made in another order: what fp32 makes of that over the rest of the run (measured).
DRIFT = 2e-2
PHASES = ("sample", "train", "predict", "guide", "backward", "keep")
BETWEEN = ("write_share", "sample_average", "recovery")
STATELESS = {"teacher": "Teacher", "text": "Text", "client": "RewardClientActor", "replica": "ServeReplica:.*:ink",
             "ingress": "ServeReplica:.*:Rewards", "keeper": "Keeper"}  # fmt: skip
RANKS = {"generator": "GeneratorRank", "score": "ScoreRank"}


@dataclass(frozen=True)
class Cell:
    """victim: whose process; how: kill, stop (SIGSTOP), node (all of its node), return (and another comes),
    drain, two (and a teacher too)."""

    victim: str
    phase: str
    zero: int
    how: str = "kill"

    @property
    def name(self) -> str:
        return f"{self.how}-{self.victim}-{self.phase}-zero{self.zero}"

    @property
    def bound(self) -> float:
        return DRIFT if self.how in ("node", "drain", "return") else 0.0


def cells() -> list[Cell]:
    found = []
    for zero in (2, 3):
        found += [Cell(rank, phase, zero) for rank in RANKS for phase in (*PHASES, *BETWEEN)]
        found += [Cell(victim, "train", zero) for victim in STATELESS]
        found += [Cell(rank, "train", zero, "stop") for rank in RANKS]
        found += [Cell("teacher", "guide", zero, "stop")]
        found += [Cell("score", "train", zero, how) for how in ("node", "return", "drain", "two")]
    return found


CELLS = cells()


class Strike:
    """While it is entered, a thread waits for the cell's phase of `step` and strikes once; `struck` says when."""

    def __init__(self, cell: Cell | None, cluster, step: int, seed: int):
        self.cell, self.cluster, self.step, self.seed = cell, cluster, step, seed
        self.struck: str | None = None
        self.ended = threading.Event()
        self.run = None
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        if self.cell is not None:
            from dipp_ray.training import train as training

            outer, plain = self, training.Run

            class Seen(plain):
                def __init__(self, *arguments):
                    super().__init__(*arguments)
                    outer.run = self

            self.plain, training.Run = plain, Seen
            self.thread.start()
        return self

    def __exit__(self, *exception):
        if self.cell is not None:
            from dipp_ray.training import train as training

            training.Run = self.plain
            self.ended.set()
            self.thread.join()

    # -- when ----------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        assert self.cell is not None
        first = "backward" if self.cell.phase == "recovery" else self.cell.phase
        while not self.ended.is_set() and not self._under_way(first):
            time.sleep(0.001)
        if self.ended.is_set():
            return
        before = {actor["ActorID"] for actor in self._actors(RANKS[self.cell.victim])} if self._is_rank else set()
        self._strike()
        if self.cell.phase == "recovery":
            while not self.ended.is_set():
                new = [a for a in self._actors(RANKS[self.cell.victim]) if a["ActorID"] not in before and a["Pid"]]
                if new:
                    os.kill(new[0]["Pid"], signal.SIGKILL)
                    self.struck += f"; its successor's process {new[0]['Pid']}"
                    return
                time.sleep(0.02)

    @property
    def _is_rank(self) -> bool:
        return self.cell.victim in RANKS

    def _under_way(self, phase: str) -> bool:
        """Whether a task of the phase is at its actor, by the executor's stamps."""
        try:
            listed = list(self.run.controller.executor.listed.values())
        except (AttributeError, AssertionError, RuntimeError):  # none is open, or it changed meanwhile
            return False
        for entry in listed:
            key = entry.task.key
            if key.action == phase and entry.answer and entry.could_begin is not None:
                return key.step >= self.step or (key.step < 0 and len(self.run.states) > 1)
        return False

    # -- what ----------------------------------------------------------------------------------------------------------

    def _actors(self, kind: str) -> list[dict]:
        import re

        import ray

        table = ray._private.state.actors().values()
        named = [(f"{actor['ActorClassName']}:{actor['Name']}", actor) for actor in table]
        return sorted(
            (actor for name, actor in named if re.match(kind, name) and actor["State"] == "ALIVE"),
            key=lambda actor: actor["ActorID"],
        )

    def _strike(self) -> None:
        cell = self.cell
        kind = (RANKS | STATELESS)[cell.victim]
        found = self._actors(kind)
        if not found:
            raise RuntimeError(f"no process of {cell.victim} is there")
        victim = found[self.seed % len(found)]
        pid, node = victim["Pid"], victim["Address"]["NodeID"]
        if cell.how in ("kill", "two"):
            os.kill(pid, signal.SIGKILL)
        elif cell.how == "stop":
            os.kill(pid, signal.SIGSTOP)
        elif cell.how in ("node", "return"):
            broken = self.run.session
            self.cluster.kill(self._name_of(node))
            if cell.how == "return":
                self._give_back(broken)
        elif cell.how == "drain":
            drain(self.cluster.address, node)
        if cell.how == "two":
            os.kill(self._actors("Teacher")[0]["Pid"], signal.SIGKILL)
        self.struck = f"{cell.how} of {cell.victim} (process {pid}) in {cell.phase}, step {self.step} or later"

    def _give_back(self, broken) -> None:
        """Another node like the lost one, as soon as the run goes on without it."""
        from local import parse_node

        while not self.ended.is_set() and self.run.session is broken:
            time.sleep(0.02)
        self.cluster.add(parse_node("name=back,cpus=1,labels=role:trainer"))

    def _name_of(self, node_id: str) -> str:
        import ray

        return next(entry["NodeName"] for entry in ray.nodes() if entry["NodeID"] == node_id)


def drain(address: str, node: str) -> None:
    """As a cloud's notice of preemption, 60 seconds before."""
    command = [os.path.join(os.path.dirname(sys.executable), "ray"), "drain-node", "--address", address]
    command += ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "chaos"]
    subprocess.run([*command, "--deadline-remaining-seconds", "60"], check=True, stdout=subprocess.DEVNULL)
