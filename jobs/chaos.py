"""Faults in every phase of a step, on a cluster of several nodes on this machine, and what became of the runs.

    python jobs/chaos.py --seed 1                  # every cell that the table does not have yet
    python jobs/chaos.py --seed 1 --only stop --zero 2
    python jobs/chaos.py --table docs/chaos.md     # the figures so far, as a page

A cell is a victim, a phase of a step, and a ZeRO stage. A run takes up to a dozen of them, each in turn when the one
before has been recovered from. Every fault comes from outside the process that it hits, when the executor's stamps show
that its phase is under way. The final weights are compared with those of the run that nothing disturbed, and so is what
was measured of every step. Each fault is a line of docs/chaos.jsonl; begun again, it goes on.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "cluster"), str(HERE.parent / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:3])  # Ray's workers find the tests' reward there
os.environ.update(
    OMP_NUM_THREADS="1",
    RAY_IGNORE_UNHANDLED_ERRORS="1",
    RAY_worker_niceness="0",
    RAY_raylet_start_wait_time_s="180",
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
)

from chaos_cells import CELLS, Cell, ChaosRun, chaos_runs  # noqa: E402
from chaos_runs import (  # noqa: E402
    DRIFT,
    NODES,
    QUICK,
    bucket,
    compared,
    config_of_run,
    fresh,
    orphans,
    straight_of,
    trained,
    with_events,
    world_of,
)
from chaos_strikes import Strikes  # noqa: E402
from chaos_table import as_page, is_good, read_table  # noqa: E402
from chaos_watch import Watched  # noqa: E402
from local import local_cluster, parse_node  # noqa: E402


class Announced(Watched):
    """In a driver that is to be killed: prints when the phase is under way, and the steps that are finished."""

    def __init__(self, phase: str, step: int):
        super().__init__()
        self.phase, self.step = phase, step

    def watch(self) -> None:
        waits, said = bool(self.phase), -1
        while not self.ended.is_set():
            if waits and (step := self.under_way(self.phase, self.step)) is not None:
                print(f"UNDER WAY {step}", flush=True)
                waits = False
            if self.done > said:
                said = self.done
                print(f"DONE {said}", flush=True)
            time.sleep(0.001)


def drive(world, address: str, run: ChaosRun, phase: str, step: int) -> None:
    """What the process does that is killed from outside."""
    for left in trained(address, config_of_run(world, run), Announced(phase, step)):
        print(f"LEFT {left}", flush=True)


def struck_drivers(address: str, run: ChaosRun, given) -> tuple[list[dict], list[str]]:
    """Start the driver, kill it, and give the same command again, for each cell; returns rows, and what was left behind
    by the last one."""
    rows: list[dict] = []
    left: list[str] = []
    for number, cell in enumerate([*run.cells, None]):
        phase, step = (cell.phase, 3 + 5 * number) if cell else ("", 0)
        words = [sys.executable, __file__, "--out", str(given.out), "--drive", run.name, "--address", address]
        words += ["--phase", phase, "--step", str(step), "--faults", str(len(run.cells)), "--zero", str(run.zero)]
        driver = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        limit = threading.Timer(400, driver.kill)
        limit.start()
        resumed = None
        for line in driver.stdout:
            print(f"    {line.rstrip()}", flush=True)
            if line.startswith("DONE") and resumed is None:
                resumed = int(line.split()[1])
                if rows:
                    rows[-1]["seconds"] = round(time.time() - rows[-1]["at"], 2)
                    rows[-1]["lost"] = rows[-1]["step"] - (resumed - 1)
            if line.startswith("LEFT"):
                left.append(line.split(maxsplit=1)[1].strip())
            if line.startswith("UNDER WAY"):
                driver.kill()
                rows.append({"cell": cell.name, "step": int(line.split()[2]), "at": time.time(), "parts": {}})
        limit.cancel()
        if driver.wait() != (-9 if cell else 0):
            raise RuntimeError(f"the driver ended with {driver.returncode}")
    return rows, left


def outcome(cluster, world, run: ChaosRun, given) -> list[dict]:
    """Train with the faults of `run`, and compare: its rows."""
    straight = straight_of(world, run.zero)
    if not (straight.path / "pipeline").exists():
        fresh(straight)
        trained(cluster.address, straight)
    config = config_of_run(world, run)
    fresh(config)
    began, ended, left = time.time(), None, []
    strikes = Strikes(run.cells, cluster, given.seed, given.patient)
    rows = strikes.rows
    try:
        if run.kind == "driver":
            rows, left = struck_drivers(cluster.address, run, given)
        else:
            left = trained(cluster.address, config, strikes)
    except Exception as error:  # it is a finding, and the other runs go on
        ended = f"{type(error).__name__}: {error}"
        print(f"  the run ended: {ended}", flush=True)
    common = {
        "run": f"{run.name} {began:.0f}",
        "seed": given.seed,
        "steps": run.steps,
        "load": round(os.getloadavg()[0], 1),
    }
    common |= {"run_seconds": round(time.time() - began, 1), "ended": ended, "left": left, "bound": 0.0}
    difference = {"different_at": None, "weights": None, "x0": None, "loss": None}
    if ended is None:
        difference = compared(config, straight)
        common["bound"] = DRIFT if run.kind == "sizes" else 0.0
        if run.kind == "store":
            common["left"] = left + orphans(config)
    with_events(rows, config, difference)
    if strikes.fault:
        print(f"  the strikes ended: {strikes.fault!r}", flush=True)
    return [row | common | {"difference": difference} for row in rows]


def todo(given, table: list[dict]) -> list[Cell]:
    done = {(row["cell"], row["seed"]) for row in table if row["good"]}
    wanted = [cell for cell in CELLS if given.only in cell.name and given.zero in (None, cell.zero)]
    return [cell for cell in wanted if (cell.name, given.seed) not in done]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--kind", choices=("same", "sizes", "driver", "store"), help="runs of this kind")
    parser.add_argument("--zero", type=int, choices=(2, 3), help="cells of this ZeRO stage")
    parser.add_argument("--runs", type=int, default=1000, help="at most so many runs")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--patient", action="store_true", help="strike when spare processes are ready, and not before")
    parser.add_argument("--figures", type=Path, default=HERE.parent / "docs" / "chaos.jsonl", help="the table")
    parser.add_argument("--table", type=Path, help="write the figures so far to this page, and run nothing")
    for name in ("--drive", "--address", "--phase"):  # how it calls itself for a driver that is killed
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    for name in ("--step", "--faults"):
        parser.add_argument(name, type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.table:
        given.table.write_text(as_page(read_table(given.figures), given.table.read_text()))
        return 0
    world = world_of(given.out)
    if given.drive:
        run = ChaosRun(given.drive, "driver", given.zero, (Cell("driver", given.phase, given.zero),) * given.faults)
        drive(world, given.address, run, given.phase, given.step)
        return 0
    cells = todo(given, read_table(given.figures))
    runs = [run for run in chaos_runs(cells, given.seed) if given.kind in (None, run.kind)][: given.runs]
    print(f"{len(cells)} cells to go, in {len(runs)} runs", flush=True)
    failed = 0
    for run in runs:
        print(run.name, *(cell.name for cell in run.cells), flush=True)
        s3 = bucket(os.environ) if run.kind == "store" else nullcontext()
        with s3, local_cluster([parse_node(n) for n in NODES], system_config=QUICK) as cluster:
            rows = outcome(cluster, world, run, given)
        with given.figures.open("a") as file:
            for row in rows:
                row["good"] = is_good(row)
                failed += not row["good"]
                print(f"  {'good' if row['good'] else 'BAD'}: {row}", flush=True)
                file.write(json.dumps({key: row[key] for key in row if key not in ("events", "pids")}) + "\n")
        print(f"  {len(rows)} of {len(run.cells)} struck", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
