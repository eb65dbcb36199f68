"""Faults in every phase of a step, on a cluster of several nodes on this machine, and what became of the run.

    python jobs/chaos.py --seed 1                  # every cell that the table does not have yet
    python jobs/chaos.py --seed 1 --only node --zero 2
    python jobs/chaos.py --table docs/chaos.md     # the figures so far, as a page

A cell is a victim, a phase of a step, and a ZeRO stage. The fault comes from outside the process that it hits, when the
executor's stamps show that the phase is under way; the step is drawn from the seed. The final weights are compared with
those of the run that nothing disturbed. Each outcome is a line of runs/chaos/table.jsonl; begun again, it goes on.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "cluster"), str(HERE.parent / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:3])  # Ray's workers find the tests' reward there
os.environ.update(OMP_NUM_THREADS="1", RAY_IGNORE_UNHANDLED_ERRORS="1")

from chaos_cells import CELLS, Cell, Strike  # noqa: E402
from chaos_table import as_page, read_table  # noqa: E402
from local import local_cluster, parse_node  # noqa: E402

from settings import tiny_config  # noqa: E402
from tiny import pixart_pipeline, prompt_file  # noqa: E402

QUICK = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 4,
}
NODES = ["name=rest,cpus=2,labels=role:rest", *(f"name={n},cpus=1,labels=role:trainer" for n in ("one", "two"))]
STEPS = 40


def config_of(world, name: str, zero: int):
    trained = f"{{workers: {{min: 1, max: 2}}, cpus: 0.5, zero_stage: {zero}, persistence_threshold: 0,"
    trained += " labels: {role: trainer}}"
    return tiny_config(
        *world,
        f"run.name={name}",
        f"run.steps={STEPS}",
        f"roles.generator={trained}",
        f"roles.score={trained}",
        "roles.teacher.labels={role: rest}",
        "roles.text.labels={role: rest}",
        "roles.reward.labels={role: rest}",
        "roles.heartbeat_s=6",
        "roles.spares=true",
        "roles.wait_s=120",
        "objective.score_updates=2",
        "checkpoint.every=20",
        "checkpoint.memory_every=2",
        "log.samples_every=20",
    )


def final_state(config) -> dict:
    from dipp_ray.checkpoints.store import CheckpointStore

    store = CheckpointStore(str(config.path / "checkpoints"), say=lambda _: None)
    checkpoint = store.require(STEPS)
    return {group: store.read_group(checkpoint, group)[0] for group in ("generator", "score")}


def difference(ours: dict, theirs: dict) -> float:
    """The largest difference of any weight, relative to the largest of its tensor; 0 where all are equal to the bit."""
    worst = 0.0
    for group, tensors in theirs.items():
        assert tensors.keys() == ours[group].keys()
        for name, value in tensors.items():
            scale = float(value.abs().max()) or 1.0
            worst = max(worst, float((ours[group][name] - value).abs().max()) / scale)
    return worst


def trained(cluster, config, strike: Strike | None) -> None:
    import ray

    from dipp_ray.training import train as training

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        with strike or Strike(None, cluster, 0, 0):
            training.train(config, lambda line: print(f"    {line}", flush=True))
    finally:
        ray.shutdown()


def outcome(cluster, world, cell: Cell, seed: int) -> dict:
    """Train with the fault of `cell`, and compare."""
    from dipp_ray.reporting.events import read_events

    straight = config_of(world, f"straight-{cell.zero}", cell.zero)
    if not (straight.path / "pipeline").exists():
        trained(cluster, straight, None)
    config = config_of(world, cell.name, cell.zero)
    shutil.rmtree(config.path, ignore_errors=True)
    latest = 6 if cell.how == "return" else STEPS - 6  # a node that returns is to be used
    step = random.Random(f"{seed} {cell.name}").randrange(3, latest)
    strike = Strike(cell, cluster, step, seed)
    began = time.monotonic()
    trained(cluster, config, strike)
    events = read_events(config.path)
    recovered = [event for event in events if event["event"] == "recovered"]
    return {
        "cell": cell.name,
        "seed": seed,
        "step": step,
        "struck": strike.struck,
        "difference": difference(final_state(config), final_state(straight)),
        "recoveries": len(recovered),
        "steps_lost": sum(event["steps_lost"] for event in recovered),
        "seconds_to_next_step": max((event["seconds"] for event in recovered), default=0.0),
        "seconds": round(time.monotonic() - began, 1),
        "events": [f"{event['event']}: {event['reason']}" for event in events],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--zero", type=int, choices=(0, 2, 3), help="cells of this ZeRO stage")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--table", type=Path, help="write the figures so far to this page, and run nothing")
    given = parser.parse_args()
    table = given.out / "table.jsonl"
    if given.table:
        given.table.write_text(as_page(read_table(table)))
        return 0
    done = {(entry["cell"], entry["seed"]) for entry in read_table(table)}
    wanted = [cell for cell in CELLS if given.only in cell.name and given.zero in (None, cell.zero)]
    todo = [cell for cell in wanted if (cell.name, given.seed) not in done]
    print(f"{len(todo)} of {len(wanted)} cells to go")
    given.out.mkdir(parents=True, exist_ok=True)
    home = given.out.resolve()
    world = home, home / "teacher", home / "prompts.parquet"
    if not world[1].exists():
        pixart_pipeline(world[1])
        prompt_file(world[2])
    failed = 0
    for cell in todo:
        print(cell.name, flush=True)
        with local_cluster([parse_node(text) for text in NODES], system_config=QUICK) as cluster:
            entry = outcome(cluster, world, cell, given.seed)
        with table.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        good = entry["struck"] and entry["difference"] <= cell.bound
        failed += not good
        print(f"  {'good' if good else 'BAD'}: {entry}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
