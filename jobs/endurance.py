"""Many faults, one run: what leaks, and what part of the time was spent on steps that count.

    python jobs/endurance.py --steps 1000 --every 20 --seed 1

A random process of the tiny world's run (a rank, a teacher, text, the reward client, a keeper) is killed every so many
steps, on a cluster of several nodes on this machine; then the same run undisturbed. Written to
runs/endurance/figures.json, anew at each sample, so that a run that is broken off has its figures too: memory of the
driver and of the object store, living actors, placement groups, applications and files over the run, and the goodput:
seconds a step undisturbed by seconds a step disturbed. `--show` prints what is there.
"""

import argparse
import json
import os
import random
import signal
import time
from pathlib import Path

import psutil
from chaos import NODES, QUICK  # sets the environment, before Ray is imported
from chaos_cells import RANKS, STATELESS
from chaos_runs import config_of, fresh, trained, world_of
from chaos_watch import Watched
from local import local_cluster, parse_node

VICTIMS = [*RANKS, *RANKS, "teacher", "text", "client", "keeper"]
LEVEL = ("driver_mb", "object_store_mb", "actors", "placement_groups", "applications", "open_files", "threads")


class Hammer(Watched):
    """Kills a random process each time that `every` more steps are finished, where it `strikes`, and writes what there
    is then."""

    def __init__(self, every: int, seed: int, strikes: bool, write):
        super().__init__()
        self.every, self.random, self.strikes, self.write = every, random.Random(seed), strikes, write
        self.samples: list[dict] = []

    def watch(self) -> None:
        due = self.every
        while not self.ended.is_set():
            if self.done >= due and not self.recovering:
                due += self.every
                self.samples.append(self.seen())
                self.write(self.samples)
                if self.strikes:
                    self.strike()
            time.sleep(0.01)

    def strike(self) -> None:
        victim = self.random.choice(VICTIMS)
        found = self.actors((RANKS | STATELESS)[victim])
        if victim in RANKS:
            here = self.ranks()
            found = [actor for actor in found if actor["ActorID"] in here]
        if found:
            os.kill(self.random.choice(found)["Pid"], signal.SIGKILL)
            self.samples[-1]["killed"] = victim

    def seen(self) -> dict:
        import ray
        from ray import serve
        from ray.util import placement_group_table

        total, free = ray.cluster_resources(), ray.available_resources()
        driver = psutil.Process()
        return {
            "step": self.done,
            "time": round(time.time(), 1),
            "driver_mb": round(driver.memory_info().rss / 1e6, 1),
            "object_store_mb": round((total["object_store_memory"] - free.get("object_store_memory", 0)) / 1e6, 1),
            "actors": len(self.actors()),
            "placement_groups": sum(table["state"] != "REMOVED" for table in placement_group_table().values()),
            "applications": len(serve.status().applications),
            "files": sum(1 for path in self.run.config.path.rglob("*") if path.is_file()),
            "open_files": driver.num_fds(),
            "threads": driver.num_threads(),
        }


def measured(world, name: str, given, strikes: bool, write) -> None:
    """Train; `write` is given the figures so far, again and again."""
    from dipp_ray.reporting.events import read_events
    from dipp_ray.reporting.metrics import read_metrics

    settings = ["checkpoint.every=100", "checkpoint.memory_every=5", "log.samples_every=100"]
    config = config_of(world, name, 2, given.steps, *settings)
    fresh(config)
    began = time.time()

    def figures(samples: list[dict], left: list[str] | None = None) -> None:
        events, records = read_events(config.path), read_metrics(config.path)
        recovered = [event for event in events if event["event"] == "recovered"]
        write(
            {
                "steps": records[-1]["step"],
                "every": given.every,
                "seconds": round(records[-1]["time"] - records[0]["time"], 1),
                "began": began,
                "faults_of_ranks": sum(event["event"] in ("fault", "lost node") for event in events),
                "killed": sum("killed" in sample for sample in samples),
                "recoveries": len(recovered),
                "steps_lost": sum(event["steps_lost"] for event in recovered),
                "longest_recovery_s": max((event["seconds"] for event in recovered), default=0.0),
                "left_behind": left,
                "samples": samples,
            }
        )

    with local_cluster([parse_node(text) for text in NODES], system_config=QUICK) as cluster:
        hammer = Hammer(given.every, given.seed, strikes, figures)
        left = trained(cluster.address, config, hammer)
        if hammer.fault:
            raise hammer.fault
        figures(hammer.samples, left)


def shown(found: dict) -> str:
    """The figures in words."""
    lines = []
    for name, one in found.items():
        lines.append(f"{name}: {json.dumps({key: value for key, value in one.items() if key != 'samples'})}")
        samples = one["samples"]
        if len(samples) > 2:
            ends = samples[1], samples[len(samples) // 2], samples[-1]
            for key in LEVEL:
                worst = max(sample[key] for sample in samples)
                said = ", ".join(f"{sample[key]} at step {sample['step']}" for sample in ends)
                lines.append(f"  {key}: {said}; at most {worst}")
    if len(found) == 2:
        pace = {name: one["seconds"] / one["steps"] for name, one in found.items()}
        lines.append(f"goodput {pace['undisturbed'] / pace['disturbed']:.2f}: {pace['undisturbed']:.3f} s a step "
                     f"undisturbed, {pace['disturbed']:.3f} disturbed")  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("undisturbed", "disturbed"), help="one of the two runs")
    parser.add_argument("--out", type=Path, default=Path("runs/endurance"))
    parser.add_argument("--show", action="store_true", help="print the figures so far, and run nothing")
    given = parser.parse_args()
    world = world_of(given.out)
    file = given.out / "figures.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for name in () if given.show else ("disturbed", "undisturbed"):
        if given.only in (None, name):

            def write(figures: dict, name=name) -> None:
                found[name] = figures
                file.write_text(json.dumps(found, indent=1))

            measured(world, f"{name}-{given.seed}", given, name == "disturbed", write)
    print(shown(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
