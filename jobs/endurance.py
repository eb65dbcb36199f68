"""Many faults, one run: what leaks, and what part of the time was spent on steps that count.

    python jobs/endurance.py --steps 1000 --every 20 --seed 1

A random process of the tiny world's run (a rank, a teacher, text, the reward client, a keeper) is killed every so many
steps, on a cluster of several nodes on this machine; then the same run undisturbed. Written to runs/endurance.json:
memory of the driver and of the object store, living actors, placement groups and files over the run, and the goodput:
seconds a step undisturbed by seconds a step disturbed.
"""

import argparse
import json
import os
import random
import signal
import time
from pathlib import Path

import psutil
from chaos import NODES, QUICK, config_of  # sets the environment, before Ray is imported
from chaos_cells import RANKS, STATELESS, Strike
from local import local_cluster, parse_node

from tiny import pixart_pipeline, prompt_file

VICTIMS = [*RANKS, *RANKS, "teacher", "text", "client", "keeper"]


class Hammer(Strike):
    """Kills a random process each time that so many more steps are finished, and notes what there is then."""

    def __init__(self, cluster, every: int, seed: int, strikes: bool):
        super().__init__(None, cluster, 0, seed)
        self.every, self.random, self.strikes = every, random.Random(seed), strikes
        self.cell = True  # so that the run is seen
        self.samples: list[dict] = []

    def _watch(self) -> None:
        due = self.every
        while not self.ended.is_set():
            done = self.run.sessions.attempts.furthest if self.run else 0
            if done >= due:
                due += self.every
                self.samples.append(self._seen(done))
                if self.strikes:
                    kind = self.random.choice(VICTIMS)
                    if found := self._actors((RANKS | STATELESS)[kind]):
                        os.kill(self.random.choice(found)["Pid"], signal.SIGKILL)
            time.sleep(0.01)

    def _seen(self, done: int) -> dict:
        import ray
        from ray.util import placement_group_table

        total, free = ray.cluster_resources(), ray.available_resources()
        held = [table for table in placement_group_table().values() if table["state"] != "REMOVED"]
        return {
            "step": done,
            "driver_mb": round(psutil.Process().memory_info().rss / 1e6, 1),
            "object_store_mb": round((total["object_store_memory"] - free.get("object_store_memory", 0)) / 1e6, 1),
            "actors": len(self._actors("")),
            "placement_groups": len(held),
            "files": sum(1 for path in self.run.config.path.rglob("*") if path.is_file()),
            "open_files": psutil.Process().num_fds(),
        }


def measured(world, name: str, steps: int, every: int, seed: int, strikes: bool) -> dict:
    import ray

    from dipp_ray.reporting.events import read_events
    from dipp_ray.settings import apply_override, validate
    from dipp_ray.training import train as training

    config = config_of(world, name, 2)
    data = config.model_dump(mode="json")
    for override in (
        f"run.steps={steps}",
        "checkpoint.every=100",
        "checkpoint.memory_every=5",
        "log.samples_every=100",
    ):
        apply_override(data, override)
    config = validate(data, type(config), "endurance")
    with local_cluster([parse_node(text) for text in NODES], system_config=QUICK) as cluster:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        try:
            hammer = Hammer(cluster, every, seed, strikes)
            with hammer:
                training.train(config, lambda line: print(f"    {line}", flush=True))
        finally:
            ray.shutdown()
    lines = [json.loads(line) for line in (config.path / "metrics.jsonl").read_text().splitlines()]
    events = read_events(config.path)
    recovered = [event for event in events if event["event"] == "recovered"]
    return {
        "steps": steps,
        "seconds": round(lines[-1]["time"] - lines[0]["time"], 1),
        "faults": len([event for event in events if event["event"] in ("fault", "lost node")]),
        "recoveries": len(recovered),
        "steps_lost": sum(event["steps_lost"] for event in recovered),
        "samples": hammer.samples,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/endurance"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    home = given.out.resolve()
    world = home, home / "teacher", home / "prompts.parquet"
    if not world[1].exists():
        pixart_pipeline(world[1])
        prompt_file(world[2])
    found = {
        name: measured(world, f"{name}-{given.seed}", given.steps, given.every, given.seed, name == "disturbed")
        for name in ("undisturbed", "disturbed")
    }
    found["goodput"] = round(found["undisturbed"]["seconds"] / found["disturbed"]["seconds"], 3)
    (home / "endurance.json").write_text(json.dumps(found, indent=1))
    print(json.dumps({key: value for key, value in found["disturbed"].items() if key != "samples"}))
    print(f"goodput {found['goodput']}; {home / 'endurance.json'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
