"""A run of the real roles on networks of real size, with random weights, on the CPU: what it takes against `check`.

    python jobs/real_size.py sd15|pixart|sdxl [--folder DIR] [section.key=value ...]

Networks and VAE have the published sizes, LoRA is trained on generator and score model, whose ranks answer for the
teacher with their adapter off, embeddings lie in a file, and a private service scores with a CLIP of ViT-B's size.
Arithmetic is in bf16, and with it frozen weights. SD 1.5 and PixArt take two steps; SDXL takes one, is interrupted,
which leaves a checkpoint, and goes on from it.

Of each process the most private memory that it ever had (USS: Private_* of /proc/PID/smaps_rollup, looked at four
times a second) is compared with what `dipp-ray check` says that it holds, less what the same process takes in a run of
networks of a few thousand weights: its libraries, and what they took up when they were first used. glibc is told to
give blocks above a MiB back at once (MALLOC_MMAP_THRESHOLD_): by itself it keeps much of what a pass has freed, which
is not what a network takes. Set it otherwise to see that too.
Needs 20 GiB of memory and as much disk, and an hour for SDXL.
What it found is in docs/memory.md. Exit status: 0, or 1 where a run failed or a process is not WITHIN what `check`
says.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil
import yaml

WITHIN = 0.15
EVERY_S = 0.25
ROLES = {
    "GeneratorRank": "generator",
    "ScoreRank": "score",
    "::Teacher": "teacher",
    "::Text": "text",
    "ServeReplica": "reward",
}


def settings(name: str, folder: Path, small: bool) -> dict:
    """The run's configuration. small: for what its processes take without weights."""
    trained = {"threads": 2, "gradient_checkpointing": True, "dtype": "bf16"}
    rows = 1 if name == "sdxl" else 2
    side = 128 if small else 512
    return {
        "run": {"name": "small" if small else "real", "folder": str(folder / "runs"),
                "steps": 100 if name == "sdxl" else 2},
        "model": {"teacher": str(folder / "pipeline"), "t_star": 625, "resolution": [side, side]},
        "data": {"prompts": str(folder / "prompts.parquet"), "batch_size": rows, "micro_batches": rows},
        "objective": {"reward_scale": 10, "guidance_scale": 4.5},
        "generator_optim": {"lr": 1e-5},
        "score_optim": {"lr": 1e-5},
        "adapters": {"generator": {"rank": 64}, "score": {"rank": 64}},
        "reward": {
            "terms": [{"name": "clip", "model": "clip", "folder": str(folder / "reward")}],
            "deadline_s": 3600, "checkpoint_decoder": True,
        },
        "roles": {"generator": trained, "score": trained, "reward": {"threads": 2, "dtype": "bf16"},
                  "text": {"threads": 2}, "step_timeout_s": 7200},
        "checkpoint": {"every": 1},
        "log": {"samples": 1, "held_out_samples": 1, "samples_every": 100},
    }  # fmt: skip


class Watched:
    """The most private memory of each role's process below a process, and of all of them at a time, in bytes."""

    def __init__(self, pid: int):
        self.pid, self.ended = pid, threading.Event()
        self.peaks: dict[str, int] = defaultdict(int)
        self.total = 0
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(EVERY_S):
            found = []
            for process in _below(self.pid):
                try:
                    found.append((_role(process, self.pid), process.memory_full_info().uss))
                except psutil.Error:
                    continue
            self.total = max(self.total, sum(size for _, size in found))
            for role, size in found:
                self.peaks[role] = max(self.peaks[role], size)


def _below(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.Error:
        return []


def _role(process: psutil.Process, driver: int) -> str:
    if process.pid == driver:
        return "driver"
    title = " ".join(process.cmdline())
    return next((role for words, role in ROLES.items() if title.startswith("ray::") and words in title), "other")


def prepare(name: str, folder: Path, small: bool, given: list[str]) -> Path:
    """The configuration's file, with all that it names beside it."""
    import pyarrow
    import pyarrow.parquet
    from real_networks import PROMPTS, pipeline, reward

    folder.mkdir(parents=True, exist_ok=True)
    pipeline(name, folder / "pipeline", small)
    reward(folder / "reward", small)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": PROMPTS}), folder / "prompts.parquet")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings(name, folder, small)))
    if not (folder / "embeddings").exists():
        alone("encode", path, given)
    data = yaml.safe_load(path.read_text())
    data["data"]["embeddings"] = str(folder / "embeddings")
    path.write_text(yaml.safe_dump(data))
    return path


def alone(what: str, path: Path, given: list[str]) -> subprocess.Popen:
    """One part of the work in a process of its own, waited for unless it is a training."""
    process = subprocess.Popen([sys.executable, __file__, f"--{what}", str(path), *given])
    if what != "train" and process.wait():
        sys.exit(1)
    return process


def encode(path: str, given: list[str]) -> None:
    from contextlib import nullcontext

    import torch

    from dipp_ray.config import load_config
    from dipp_ray.encoding.command import encode
    from dipp_ray.encoding.encoder import Encoder

    config = load_config(path, given)
    encoders = lambda config: nullcontext([Encoder(config, torch.device("cpu"))])  # noqa: E731
    encode(config, str(Path(path).parent / "embeddings"), encoders, print, "bf16", 2)


def check(path: str, given: list[str]) -> None:
    """What `dipp-ray check` prints of memory, and in bytes for the comparison."""
    for line, role, size in said(path, given):
        print(f"  {line}" if line else f"{role}={size:.0f}")


def said(path: str, given: list[str]):
    from dipp_ray.config import load_config
    from dipp_ray.models.pipeline import frame_of
    from dipp_ray.models.reading import settled
    from dipp_ray.training.footprint import footprint_lines, held
    from dipp_ray.training.sizes import allowed_sizes

    config = settled(load_config(path, given))
    frame, sizes = frame_of(config.model), allowed_sizes(config)[0]
    processes = held(config, frame, sizes)
    for line in footprint_lines(config, frame, sizes, processes):
        yield line, None, 0.0
    for one in processes:
        yield None, one.role.partition(" ")[0], one.bytes + sum(one.node.values())


def train(path: str, given: list[str]) -> None:
    from dipp_ray.reporting.quiet import quiet_libraries

    quiet_libraries()
    from dipp_ray.config import load_config
    from dipp_ray.connecting import connect
    from dipp_ray.training.train import train

    for left in range(9, -1, -1):
        try:
            connect()
            break
        except Exception as error:  # on a busy machine Ray may take longer to start than it waits for itself
            if not left or "timed out during startup" not in str(error):
                raise
    train(load_config(path, given), print)


def measured(path: Path, given: list[str], until: int | None = None) -> tuple[dict[str, int], int]:
    """(peaks by role, of all at a time) of a training; until: it is interrupted once so many steps are committed."""
    process = alone("train", path, given)
    watched = Watched(process.pid)
    committed = path.parent / "runs" / "real" / "checkpoints" / f"step_{until or 0:06d}" / "COMMITTED.json"
    while process.poll() is None:
        if until and committed.exists():
            process.send_signal(signal.SIGINT)
            process.wait()
        time.sleep(1)
    watched.stop()
    if process.returncode not in ((0, 130, -signal.SIGINT) if until else (0,)):
        sys.exit(f"the training ended with exit status {process.returncode}")
    return watched.peaks, watched.total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["sd15", "pixart", "sdxl"])
    parser.add_argument("--folder", type=Path, default=Path("runs/real_size"), help="where all of it is written")
    given, settings = parser.parse_known_args()
    folder = given.folder.resolve() / given.name
    small = prepare(given.name, folder / "small", True, settings)
    kept = small.parent / "before.json"
    if not kept.exists():
        before, _ = measured(small, [*settings, "run.steps=1"])
        kept.write_text(json.dumps(before))
    before = defaultdict(int, json.loads(kept.read_text()))
    real = prepare(given.name, folder, False, settings)
    told = subprocess.run(
        [sys.executable, __file__, "--check", str(real), *settings], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    print(*(line for line in told if line.startswith("  ")), sep="\n")
    expected = {line.partition("=")[0]: float(line.partition("=")[2]) for line in told if not line.startswith("  ")}
    needed, free = sum(expected.values()) + sum(before.values()), psutil.virtual_memory().available
    if needed > 0.9 * free:
        sys.exit(f"{needed / 2**30:.1f} GiB are needed, and {free / 2**30:.1f} are free: other programs would be ended")
    if given.name == "sdxl":
        peaks, total = measured(real, settings, until=1)
        again, more = measured(real, settings, until=3)
        peaks, total = {role: max(peaks[role], again[role]) for role in {*peaks, *again}}, max(total, more)
    else:
        peaks, total = measured(real, settings)
    print(f"\n| {given.name} | check says | measured | of it |\n|---|---|---|---|")
    good = True
    for role, size in expected.items():
        found = peaks[role] - before[role]
        within = abs(found / size - 1) <= WITHIN
        good &= within
        verdict = "" if within else f", not within {WITHIN:.0%}"
        print(f"| {role} | {size / 2**30:.2f} GiB | {found / 2**30:.2f} GiB | {found / size:.0%}{verdict} |")
    print(f"| before weights | | {', '.join(f'{role} {before[role] / 2**30:.2f}' for role in expected)} GiB | |")
    print(f"| driver | | {peaks['driver'] / 2**30:.2f} GiB | |")
    print(f"| all processes at a time | | {total / 2**30:.2f} GiB | |")
    return 0 if good else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    parts = {"--encode": encode, "--check": check, "--train": train}
    if sys.argv[1:] and sys.argv[1] in parts:
        parts[sys.argv[1]](sys.argv[2], sys.argv[3:])
        sys.exit(0)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: other work on the machine would starve it
    sys.exit(main())
