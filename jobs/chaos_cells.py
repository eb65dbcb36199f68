"""What chaos does: the cells of its table, and the runs that take them one after the other. Pure."""

import random
from dataclasses import dataclass

PHASES = ("sample", "train", "predict", "guide", "backward", "keep", "write_share", "sample_average", "recovery")
EVERYWHERE = ("sample", "train", "predict", "backward", "write_share", "recovery")
RANKS = {"generator": "GeneratorRank", "score": "ScoreRank"}
STATELESS = {
    "teacher": "Teacher:",
    "text": "Text:",
    "client": "RewardClientActor:",
    "replica": "ServeReplica:.*:ink",
    "ingress": "ServeReplica:.*:Rewards",
    "keeper": "Keeper:",
}  # what an actor's class and name begin with
FAULTS_A_RUN = 20
EVERY = 8  # steps between checkpoints, and between looks


@dataclass(frozen=True)
class Cell:
    """victim: whose process, or several with + between; phase: what is under way; how: kill, stop (SIGSTOP), swap (its
    node is lost, and another comes at once), node (is lost), back (another node comes), drain (a notice of 60 s)."""

    victim: str
    phase: str
    zero: int
    how: str = "kill"

    @property
    def name(self) -> str:
        return f"{self.how}-{self.victim}-{self.phase}-zero{self.zero}"

    @property
    def victims(self) -> list[str]:
        return self.victim.split("+")

    @property
    def kind(self) -> str:
        """What kind of run it belongs to: sizes (they change), driver, store (checkpoints on S3), same."""
        if self.victim == "driver":
            return "driver"
        if self.phase == "upload":
            return "store"
        return "sizes" if self.how in ("node", "back", "drain") else "same"


@dataclass(frozen=True)
class ChaosRun:
    """A run that takes these faults, each when the one before has been recovered from; those that it ends before are
    taken up by another."""

    name: str
    kind: str
    zero: int
    cells: tuple[Cell, ...]

    @property
    def steps(self) -> int:
        if self.kind == "sizes":  # the smaller groups' steps are quick, and a notice takes a while
            return 8 * EVERY
        return EVERY * (2 * len(self.cells) // 3 + 2)  # a fault takes four or five of them, where it waits for none


def cells() -> list[Cell]:
    """All of them, those first that have no like."""
    first, more = [], []
    for zero in (2, 3):
        first += [Cell(rank, phase, zero) for rank in RANKS for phase in PHASES]
        first += [Cell(victim, "train", zero) for victim in STATELESS]
        first += [Cell(rank, "train", zero, "stop") for rank in RANKS]
        first += [Cell(victim, "guide", zero, "stop") for victim in ("teacher", "client")]
        first += [Cell("text", "sample", zero, "stop"), Cell("keeper", "keep", zero, "stop")]
        first += [Cell(pair, "train", zero) for pair in ("score+teacher", "generator+keeper", "generator+score")]
        first += [Cell("teacher", "train", zero, "swap")]
        first += [Cell("score", "train", zero, "node"), Cell("trainer", "train", zero, "back")]
        first += [Cell("generator", "train", zero, "drain"), Cell("trainer", "backward", zero, "back")]
        first += [Cell("driver", phase, zero) for phase in ("train", "write_share")]
        first += [Cell(rank, "upload", zero) for rank in RANKS]
        more += [Cell(victim, phase, zero) for victim in STATELESS for phase in EVERYWHERE if phase != "train"]
    return first + more


CELLS = cells()


def chaos_runs(wanted: list[Cell], seed: int) -> list[ChaosRun]:
    """The runs that take the wanted cells. Where sizes stay, the seed says which fault follows which."""
    runs = []
    for kind in ("same", "sizes", "driver", "store"):
        for zero in (2, 3):
            found = [cell for cell in wanted if (cell.kind, cell.zero) == (kind, zero)]
            if kind == "sizes" and found:  # each begins where the one before has led
                found = [cell for cell in CELLS if (cell.kind, cell.zero) == (kind, zero)]
            for number, begin in enumerate(range(0, len(found), FAULTS_A_RUN)):
                order = found[begin : begin + FAULTS_A_RUN]
                if kind == "same":
                    random.Random(f"{seed} {zero} {number}").shuffle(order)
                runs.append(ChaosRun(f"{kind}-zero{zero}-seed{seed}-{order[0].name}", kind, zero, tuple(order)))
    return runs
