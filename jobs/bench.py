"""The same training step, reward included, by the plain loop and by the Ray pipeline, in one run.

    python jobs/bench.py [--steps 60] [--rounds 3]

On the miniature's alignment (batch of 64). The plain loop runs with two threads; the floor is the plain loop's time
with one thread, over two cores: the roles' own compute, split perfectly. Rounds take turns, so that a machine whose
speed drifts is unfair to nobody; the medians are compared. CPU seconds are told by process beside the wall time:
their ratio to the plain loop's holds from one machine to the next, where the wall time's depends on what else runs.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from dipp_ray.cli import guarded
from dipp_ray.config import RunConfig
from dipp_ray.connecting import connect
from dipp_ray.reporting.quiet import quiet_libraries

CORES = 2
WIDTH = 110  # columns, into a pipe too


def main() -> None:
    quiet_libraries()
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given.add_argument("--steps", type=int, default=60, help="training steps of one measurement (%(default)s)")
    given.add_argument("--rounds", type=int, default=3, help="measurements of each way (%(default)s)")
    given = given.parse_args()
    connect()

    from dipp_ray.data.prompts import read_prompts
    from dipp_ray.miniature.build import build_miniature
    from dipp_ray.miniature.runs import align_preset, distil_preset, fitted_reward
    from dipp_ray.storage.cache import cache_folder

    miniature = build_miniature(cache_folder() / "miniature", print)
    fitted_reward(miniature, print)
    with tempfile.TemporaryDirectory() as out:
        # Speed does not depend on how good the generator is: the teacher's weights serve as well as distilled ones.
        untrained = ["model.generator=null", "init.score=teacher", "init.score_checkpoint=null"]
        config = align_preset(miniature, Path(out), distil_preset(miniature, Path(out)), untrained)
        prompts = read_prompts(config.data.prompts, config.data.column)
        ways = {
            "plain loop, 2 threads": Plain(config, prompts, threads=2),
            "plain loop, 1 thread": Plain(config, prompts, threads=1),
            "Ray, strict": Pipeline(config, prompts, "strict"),
            "Ray, overlapped": Pipeline(config, prompts, "overlapped"),
        }
        times: dict[str, list[Cost]] = {name: [] for name in ways}
        for round_ in range(given.rounds):
            for name, way in ways.items():
                times[name].append(cost := way.per_step(given.steps))
                said = f"{1000 * cost.wall:.1f} ms a step, {1000 * cost.cpu_seconds:.1f} ms of CPU"
                print(f"round {round_ + 1}: {name}: {said}", flush=True)
    show(times, ways, config.data.batch_size)


@dataclasses.dataclass
class Cost:
    """Seconds of one step: on the clock, and of CPU by process."""

    wall: float
    cpu: dict[str, float]

    @property
    def cpu_seconds(self) -> float:
        return sum(self.cpu.values())


def cpu_of_processes() -> dict[str, float]:
    """CPU seconds so far of this process and of those that Ray started for it, summed by what they are."""
    found: Counter = Counter()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):
            times, command = process.cpu_times(), process.cmdline()
            found[kind_of(command) if process.pid != os.getpid() else "driver"] += times.user + times.system
    return found


def kind_of(command: list[str]) -> str:
    """'ray::ScoreRank.train' -> 'ScoreRank'; a replica is told by its deployment."""
    title = command[0] if command else ""
    if title.startswith("ray::ServeReplica"):
        return f"replica {title.split(':')[-1].split('.')[0]}"
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split(".")[0].split("(")[0]
    return "Ray itself"


class Plain:
    def __init__(self, config: RunConfig, prompts, threads: int):
        from dipp_ray.training.plain import plain_loop

        self.threads, self.step = threads, 0
        # One batch: micro-batches serve the pipeline alone, and would slow the plain loop down.
        whole = config.data.model_copy(update={"micro_batches": 1})
        self.loop = plain_loop(config.model_copy(update={"data": whole}), prompts)

    def per_step(self, steps: int) -> Cost:
        torch.set_num_threads(self.threads)
        self.run(3)  # allocations and caches
        cpu = time.process_time()
        return Cost(self.run(steps) / steps, {"plain loop": (time.process_time() - cpu) / steps})

    def run(self, steps: int) -> float:
        start = time.perf_counter()
        for step in range(self.step, self.step + steps):
            self.loop.step(step)
        self.step += steps
        return time.perf_counter() - start


class Pipeline:
    """The roles are started for each measurement, so that idle ones of another way take no core."""

    def __init__(self, config: RunConfig, prompts, order: str):
        name = f"bench-{order}"
        self.config = config.model_copy(
            update={
                "objective": dataclasses.replace(config.objective, order=order),
                "run": config.run.model_copy(update={"name": name}),
            }
        )
        self.prompts = prompts
        self.busy: dict[str, float] = {}
        self.wall = 0.0

    def per_step(self, steps: int) -> Cost:
        from dipp_ray.training.session import only_session

        with only_session(self.config, self.prompts, lambda line: None) as session:
            session.controller.together("generator", "start")
            self.run(session, 0, 5)
            start, before = time.perf_counter(), cpu_of_processes()
            self.run(session, 5, steps, measured=True)
            wall, after = time.perf_counter() - start, cpu_of_processes()
            self.wall += wall
            spent = {name: (seconds - before.get(name, 0.0)) / steps for name, seconds in after.items()}
            return Cost(wall / steps, {name: seconds for name, seconds in spent.items() if seconds > 0})

    def run(self, session, first: int, steps: int, measured: bool = False) -> None:
        """One stretch of steps, as training runs them between two barriers."""
        for step in session.run_until(first, lambda done: done == first + steps):
            for role, seconds in step.busy.items() if measured else ():
                self.busy[role] = self.busy.get(role, 0.0) + seconds


def show(times: dict[str, list[Cost]], ways: dict, batch: int) -> None:
    wall = {name: statistics.median(cost.wall for cost in found) for name, found in times.items()}
    cpu = {name: statistics.median(cost.cpu_seconds for cost in found) for name, found in times.items()}
    plain, floor = wall["plain loop, 2 threads"], wall["plain loop, 1 thread"] / CORES
    one = cpu["plain loop, 1 thread"]
    table = Table(title=f"one batch of {batch}, a step")
    for column in ("", "ms", "images/s", "x plain loop", "x floor", "CPU ms", "x plain loop's, 1 thread"):
        table.add_column(column, no_wrap=True)
    for name, seconds in (wall | {f"floor: that over {CORES} cores": floor}).items():
        spent = [f"{1000 * cpu[name]:.0f}", f"{cpu[name] / one:.2f}"] if name in cpu else ["", ""]
        ratios = [f"{seconds / plain:.2f}", f"{seconds / floor:.2f}"]
        table.add_row(name, f"{1000 * seconds:.1f}", f"{batch / seconds:.0f}", *ratios, *spent)
    console = Console(width=WIDTH)
    console.print(table)
    where = Table("", "process", "CPU ms a step", title="where a step's CPU time goes")
    for name, found in times.items():
        kinds = {kind for cost in found for kind in cost.cpu}
        means = {kind: statistics.mean(cost.cpu.get(kind, 0.0) for cost in found) for kind in kinds}
        for kind, seconds in sorted(means.items(), key=lambda item: -item[1]):
            where.add_row(name, kind, f"{1000 * seconds:.1f}")
    console.print(where)
    shares = Table("", "role", "busy", "waiting", title="each role's share of the wall time (reward: with its way)")
    for name, way in ways.items():
        for role, seconds in getattr(way, "busy", {}).items():
            shares.add_row(name, role, f"{seconds / way.wall:.0%}", f"{max(0.0, 1 - seconds / way.wall):.0%}")
    console.print(shares)


if __name__ == "__main__":
    sys.exit(guarded(main))
