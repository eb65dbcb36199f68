"""The faults of one run, one after the other: each in its phase, when the one before has been recovered from."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import ray
from chaos_cells import RANKS, STATELESS, Cell
from chaos_watch import Watched
from local import parse_node

LONGEST_S = 240.0  # until then a fault is recovered from, or it counts as not
NOTICE_S = 60
# What a recovery consists of: how each part begins, in the run's own words. Before the first the fault is seen.
PARTS = {
    "room": ("recovering from", "another session"),
    "meet": ("starting generator",),
    "load": ("taking up",),
    "step": ("goes on from",),
}


class Strikes(Watched):
    """`rows`: what became of each cell that was struck. patient: strikes when there is a spare for each rank."""

    def __init__(self, cells: tuple[Cell, ...], cluster, seed: int, patient: bool = False):
        super().__init__()
        self.patient = patient
        self.cells, self.cluster, self.random = cells, cluster, random.Random(f"{seed} {cells[0].name}")
        self.rows: list[dict] = []
        self.nodes = 0  # that were added

    def watch(self) -> None:
        for cell in self.cells:
            if self.patient:
                self.until(
                    lambda: self.done > 0 and self._spares() >= self.run.session.sizes.ranks, LONGEST_S, every=0.5
                )
            due = max(self.done, 1) + self.random.randrange(2, 5)
            first = "backward" if cell.phase == "recovery" else cell.phase
            step = self.until(lambda first=first, due=due: self.under_way(first, due), 3600, every=0.001)
            if step is None:
                return
            row = {"cell": cell.name, "step": step, "spares": self._spares()}
            began = time.time()
            self.rows.append(row)
            try:
                began = self._strike(cell, row)
            except Exception as error:
                row["fault"] = f"not struck: {type(error).__name__}: {error}"
                return
            row["at"] = began
            ended = self.until(lambda cell=cell, row=row: self._recovered(cell, row), LONGEST_S)
            row["seconds"] = round(ended - began, 2) if ended else None
            row["parts"] = self._parts(began, ended or time.time())
            self._look_for_stopped(row)

    # -- striking ------------------------------------------------------------------------------------------------------

    def _strike(self, cell: Cell, row: dict) -> float:
        """Returns when it was done."""
        if cell.how == "back":
            self._add("trainer")
            return time.time()
        kill = {"stop": signal.SIGSTOP}.get(cell.how, signal.SIGKILL)
        if cell.phase == "recovery":
            return self._in_recovery(cell, row)
        victims = [self._victim(victim) for victim in cell.victims]
        row["pids"] = [victim["Pid"] for victim in victims]
        began = time.time()
        if cell.how in ("kill", "stop"):
            for pid in row["pids"]:
                os.kill(pid, kill)
        elif cell.how in ("node", "swap"):
            self.cluster.kill(self._name_of(victims[0]))
            if cell.how == "swap":
                self._add("rest")
        elif cell.how == "drain":
            drain(self.cluster.address, victims[0]["Address"]["NodeID"])
        return began

    def _in_recovery(self, cell: Cell, row: dict) -> float:
        """A rank first, and while the run recovers from that, the victim: of ranks, a successor of the lost one."""
        (victim,) = cell.victims
        role = victim if victim in RANKS else "score"
        old = self.ranks()
        one = self._victim(role)
        began = time.time()
        os.kill(one["Pid"], signal.SIGKILL)
        if not self.until(lambda: self.recovering, 30):
            raise RuntimeError("the first fault was not seen")
        time.sleep(self.random.uniform(0, 1.5))
        kind = (RANKS | STATELESS)[victim]

        def successors():
            if not self.recovering:
                raise RuntimeError("the recovery was over before")
            return [actor for actor in self.actors(kind) if actor["ActorID"] not in old]

        second = self.until(successors, 60)
        if not second:
            raise RuntimeError("nobody was there to be struck")
        pid = self.random.choice(second)["Pid"]
        row["pids"] = [one["Pid"], pid]
        row["second_after"] = round(time.time() - began, 2)
        os.kill(pid, signal.SIGKILL)
        return began

    def _victim(self, victim: str) -> dict:
        if victim in RANKS:
            here = {actor for actor, role in self.ranks().items() if role == victim}
            found = [actor for actor in self.actors(RANKS[victim]) if actor["ActorID"] in here]
        else:
            found = self.actors(STATELESS[victim])
        if not found:
            raise RuntimeError(f"no process of {victim} is there")
        return self.random.choice(found)

    def _add(self, role: str) -> None:
        self.nodes += 1
        cpus = {"trainer": 1, "rest": 2}[role]
        # Ray would have each new node end at this process's signals, and those are the main thread's.
        self.cluster.cluster._shutdown_at_exit = False
        self.cluster.add(parse_node(f"name={role}-{self.nodes},cpus={cpus},labels=role:{role}"))

    def _name_of(self, actor: dict) -> str:
        node = actor["Address"]["NodeID"]
        return next(entry["NodeName"] for entry in ray.nodes() if entry["NodeID"] == node)

    # -- what becomes of it --------------------------------------------------------------------------------------------

    def _recovered(self, cell: Cell, row: dict) -> float | None:
        """When the next step was finished after the fault, and all is as it should be; None: not yet."""
        step, began = row["step"], row["at"]
        if cell.how in ("back", "drain"):
            moved = self.said("goes on from", began)
            if moved is None or (cell.how == "back" and self.run.session.sizes.ranks < 4):
                return None
            return self._finished_after(moved)
        if cell.how == "node" or cell.phase == "recovery" or set(cell.victims) & RANKS.keys():
            return self.said("recovered:", began)
        there = all(self.actors(STATELESS[victim]) for victim in cell.victims) and not self._stopped(row)
        return time.time() if there and self.done > step + 1 and not self.recovering else None

    def _finished_after(self, moved: float) -> float | None:
        """Where no fault was: the run says the step from which it goes on, and then steps."""
        text = next(text for when, text in self.told if when == moved)
        return time.time() if self.done > int(text.split()[4]) else None

    def _parts(self, began: float, ended: float) -> dict[str, float]:
        """Seconds of each part of the recovery; of a part that came twice, from its last time on."""
        told = [(when, text) for when, text in self.told if began <= when <= ended]
        marks = [("seen", began)]
        for part, words in PARTS.items():
            times = [when for when, text in told if text.startswith(words)]
            if times:
                marks.append((part, times[0] if part == "room" else times[-1]))
        marks.append(("", ended))
        return {part: round(marks[i + 1][1] - when, 2) for i, (part, when) in enumerate(marks[:-1])}

    def _spares(self) -> int:
        """Spare processes that have come up."""
        alive = {actor["ActorID"] for actor in self.actors("GeneratorRank|ScoreRank")}
        return len(alive - self.ranks().keys())

    def _stopped(self, row: dict) -> list[int]:
        """The processes that were struck, are there, and hang."""
        found = []
        for pid in row.get("pids", ()):
            with suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                    found.append(pid)
        return found

    def _look_for_stopped(self, row: dict) -> None:
        """A process that hangs must have been ended by the run."""
        if left := self._stopped(row):
            row["left_stopped"] = len(left)
            for pid in left:
                os.kill(pid, signal.SIGKILL)


def drain(address: str, node: str) -> None:
    """As a cloud's notice of preemption, NOTICE_S seconds before."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address]
    command += ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "chaos"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(NOTICE_S)], check=True, stdout=subprocess.DEVNULL)
