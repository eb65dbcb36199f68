"""The demo: the whole pipeline on the miniature, by the same code that a full-size run uses."""

import os
from collections.abc import Callable
from pathlib import Path

import rich

from dipp_ray.miniature.side_by_side import Stage, own_command, run_stages, times_table

Say = Callable[[str], None]
# What each stage does, and what it needs. Each is a process of one computing thread; the roles of a run are more.
STAGES = {
    "teacher": ("real handwritten digits, an autoencoder, a teacher", ()),
    "gold": ("a judge, which labels preference pairs", ()),
    "reward": ("preference pairs, and the reward model that is fitted to them", ("teacher", "gold")),
    "distil": ("the teacher becomes a one-step generator", ("teacher", "gold")),
    "align": (
        "Diff-Instruct++ raises the reward, the divergence to the teacher holds it back; evaluation, report",
        ("reward", "distil"),
    ),
}


def demo(out: Path, say: Say, connect: Callable[[], None]) -> Path:
    """Build, fit, distil, align, evaluate, report; returns the aligned run's folder.

    What is finished already is kept: the miniature in the cache, the runs in `out`. connect: joins or starts the Ray
    that the stages then share. Raises what `run_stages` raises.
    """
    make(tuple(STAGES), out, say, connect)
    report = out / "align" / "report.html"
    say(f"done: open {report}")
    return report.parent


def make(names: tuple[str, ...], out: Path, say: Say, connect: Callable[[], None]) -> None:
    """Run the stages of these names, and say how long each took."""
    for name in names:
        say(f"{name:>8} : {STAGES[name][0]}")
    stages = [
        Stage(name, STAGES[name][1], own_command("dipp_ray.miniature.demo_stages", name, str(out))) for name in names
    ]
    rich.print(times_table(run_stages(stages, say, lambda: join(connect))))


def join(connect: Callable[[], None]) -> None:
    """Connect, and name the cluster to the stages that begin later."""
    connect()
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
