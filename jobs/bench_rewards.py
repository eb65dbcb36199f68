"""The reward service under load: 1, 4 and 16 trainers at once, by handle and by HTTP, against one process; and one
trainer alone, straight to the models.

    python jobs/bench_rewards.py [--world vit-b|miniature] [--rounds 3] [--seconds 24] [--rows 4] [--batch 16]

Every trainer is a process of its own that sends `--rows` latents and waits for scores and gradients, again and again.
`vit-b` is a CLIP ViT-B/32 with random weights behind a small VAE (latents 4x28x28, images 3x224x224); `miniature` has
the sizes of the demo's reward. The base is the same Scorer in one process without a service, in batches of `--batch`
rows with the same number of threads. A machine's speed drifts, so both take turns, and a round's ratio is against the
base right before and right after it; the median of the rounds is shown, with their range. Share lost is what the way to
the models costs: 1 minus the ratio. `unmerged` is a deterministic service, which never puts calls of several trainers
into one batch. `--flood 160` measures fairness instead: one trainer's p50, alone and beside so many connections of
another one that come again after 50 ms whatever they are told. CPU ms is what a call costs all processes between the
trainer and the models, the trainer's included.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import ray
import torch
from flood import measure, tokens_file
from rich.console import Console
from rich.table import Table

from dipp_ray.cli import guarded
from dipp_ray.connecting import connect
from dipp_ray.reporting.quiet import quiet_libraries

CALLERS = (1, 4, 16)
PROMPTS = [f"a bold upright handwritten {digit}" for digit in ("zero", "one", "two", "three", "four", "five")]
LONGEST_S = 600.0
INGRESS = "Rewards"
BETWEEN = ("ray::Trainer", "ray::FrontActor", "ray::ProxyActor", "ray::ServeController")
SAME_BATCH_S = 0.05  # answers of one batch lie closer than this, those of two batches further apart


@dataclass(frozen=True)
class World:
    """Folders of the reward model and of the pipeline with its VAE, and the latents' shape."""

    clip: str
    pipeline: str
    latent: tuple[int, int, int]


def vit_b(folder: Path) -> World:
    from transformers import CLIPConfig

    save_clip(folder / "clip", CLIPConfig())  # its defaults are ViT-B/32
    save_vae(folder / "pipeline", block_out_channels=(16, 32, 32, 32), norm_num_groups=8, latent_channels=4)
    return World(str(folder / "clip"), str(folder / "pipeline"), (4, 28, 28))


def miniature(folder: Path) -> World:
    from dipp_ray.miniature.reward_base import RewardBaseRecipe, save_reward_base

    (folder / "clip").mkdir()
    save_reward_base(folder / "clip", RewardBaseRecipe())
    save_vae(folder / "pipeline", block_out_channels=(32,), norm_num_groups=8, latent_channels=1)
    return World(str(folder / "clip"), str(folder / "pipeline"), (1, 8, 8))


def save_clip(folder: Path, config) -> None:
    from transformers import CLIPModel

    from dipp_ray.miniature.reward_base import whole_word_tokenizer

    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    whole_word_tokenizer().save_pretrained(folder)


def save_vae(folder: Path, block_out_channels: tuple[int, ...], **sizes) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = len(block_out_channels)
    AutoencoderKL(
        block_out_channels=block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        mid_block_add_attention=False,
        **sizes,
    ).save_pretrained(folder / "vae")
    (folder / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderKL"]}))


@ray.remote(num_cpus=0)
class Trainer:
    """Calls in a closed loop: the next one when the last one is answered."""

    def __init__(self, way: str, url: str, app: str, rows: int, latent: tuple[int, int, int], index: int, dtype: str):
        from dipp_ray.serving.client.by_handle import HandleTransport
        from dipp_ray.serving.client.by_http import OF_CALLER, HttpTransport
        from dipp_ray.serving.client.reward_client import RewardClient
        from dipp_ray.serving.direct import DirectTransport

        transport = {
            "HTTP": lambda: HttpTransport([url], None, dtype, OF_CALLER),
            "handle": lambda: HandleTransport(app),
            "direct": lambda: DirectTransport(app),
        }[way]()
        self.client = RewardClient(
            transport, LONGEST_S, on_nonfinite="raise", space="latents", trainer=f"trainer-{index}"
        )
        self.x = np.random.default_rng(index).standard_normal((rows, *latent), dtype=np.float32)
        self.prompts = [PROMPTS[(index + i) % len(PROMPTS)] for i in range(rows)]

    async def run(self, seconds: float) -> list[tuple[float, float]]:
        """(begin, end) of every call that began within the time, on this machine's clock."""
        calls, until = [], time.time() + seconds
        while not calls or time.time() < until:
            begin = time.time()
            await self.client.score(self.x, self.prompts, gradient=True)
            calls.append((begin, time.time()))
        return calls

    async def warm(self) -> None:
        await self.client.score(self.x[:1], self.prompts[:1], gradient=True)


def load(trainers: list, seconds: float, rows: int) -> tuple[float, list[float]]:
    """Throughput of all trainers at once, in rows a second, and how long each call took in seconds."""
    answered = ray.get([trainer.run.remote(seconds) for trainer in trainers])
    calls = [call for of_one in answered for call in of_one]
    # From answer to answer while all trainers are at work: after the first batch's, up to the last begin of a call.
    ends = sorted(e for _, e in calls)
    begin, last_begin = ends[0] + SAME_BATCH_S, max(b for b, _ in calls) + SAME_BATCH_S
    counted = [e for e in ends if begin < e <= last_begin]
    begin = max(e for e in ends if e <= begin)
    return rows * len(counted) / (counted[-1] - begin), [e - b for b, e in calls]


def rounds(trainers: list, base, given) -> dict:
    """What one way with so many trainers reaches: see the module's text."""
    ray.get([trainer.warm.remote() for trainer in trainers])
    based, speeds, ratios, seconds_of = [ray.get(base.measure.remote(given.seconds / 2))], [], [], []
    busy_s = 0.0
    for _ in range(given.rounds):
        before = cpu_seconds()
        speed, seconds = load(trainers, given.seconds, given.rows)
        busy_s += cpu_seconds() - before
        based.append(ray.get(base.measure.remote(given.seconds / 2)))
        speeds.append(speed)
        ratios.append(2 * speed / (based[-2] + based[-1]))
        seconds_of += seconds
    return {
        "images_per_second": statistics.median(speeds),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "base": based,
        "p50_s": float(np.percentile(seconds_of, 50)),
        "p99_s": float(np.percentile(seconds_of, 99)),
        "calls": len(seconds_of),
        "cpu_ms": 1000 * busy_s / len(seconds_of),
    }


def cpu_seconds() -> float:
    """CPU time so far of what lies between a trainer and the models: its own process, proxy, ingress, controller."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):
            name = process.cmdline()[0]
            if name.startswith(BETWEEN) or name.endswith(f":{INGRESS}"):
                spent = process.cpu_times()
                total += spent.user + spent.system
    return total


@ray.remote(num_cpus=0)
class Base:
    """The same work in one process, batch after batch."""

    def __init__(self, terms, world: World, batch: int, threads: int):
        from dipp_ray.models.latents import LatentDecoder
        from dipp_ray.serving.core.scoring import Scorer

        torch.set_num_threads(threads)
        self.scorer = Scorer(terms, LatentDecoder.from_folder(world.pipeline), batch)
        self.x = torch.randn(batch, *world.latent, generator=torch.Generator().manual_seed(0))
        self.prompts = [PROMPTS[i % len(PROMPTS)] for i in range(batch)]

    def measure(self, seconds: float) -> float:
        """Rows a second."""
        self._once()
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            self._once()
            count += len(self.x)
        return count / (time.perf_counter() - begin)

    def _once(self) -> None:
        self.scorer.score(self.x, self.prompts, "latents", gradient=True)


def main() -> None:
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=("vit-b", "miniature"), default="vit-b")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each row (%(default)s)")
    parser.add_argument("--seconds", type=float, default=24.0, help="of one measurement (%(default)s)")
    parser.add_argument("--rows", type=int, default=4, help="latents of one call (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="largest batch, in rows (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of the model (%(default)s)")
    parser.add_argument("--port", type=int, default=8130)
    parser.add_argument("--flood", type=int, help="connections that ignore Retry-After, beside a trainer")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON too")
    given = parser.parse_args()
    connect()

    from dipp_ray.serving.deploy.application import KEEP_MEMORY
    from dipp_ray.serving.deploy.config import ServiceConfig
    from dipp_ray.serving.deploy.lifecycle import await_rewards, deploy_rewards, stop_rewards
    from dipp_ray.serving.deploy.listening import start_http

    with tempfile.TemporaryDirectory() as folder:
        world = {"vit-b": vit_b, "miniature": miniature}[given.world](Path(folder))
        model = {"name": "clip", "model": "clip", "folder": world.clip, "role": {"threads": given.threads}}
        settings = {"models": [model], "vae": world.pipeline, "http": {"port": given.port}, "batch_rows": given.batch}
        merging = ServiceConfig.model_validate(settings | {"name": "merging"})
        # Calls are chunks of their own here: one request at a time, whatever else waits.
        single = ServiceConfig.model_validate(settings | {"name": "single", "deterministic": True})
        url = f"http://127.0.0.1:{given.port}"
        if given.flood:
            http = {"port": given.port, "tokens": tokens_file(Path(folder))}
            config = ServiceConfig.model_validate(settings | {"name": "flooded", "http": http})
            start_http(config.http)
            deploy_rewards(config, "/")
            try:
                await_rewards(config.name, config.wait_s, print)
                measure(url, world.latent, given)
            finally:
                stop_rewards(config.name)
            return
        start_http(merging.http)
        terms = [model.term for model in merging.models]
        same = {"env_vars": KEEP_MEMORY}  # as a replica has it
        base = Base.options(runtime_env=same).remote(terms, world, given.batch, given.threads)
        rows = []
        ways = [("handle", merging, "fp32", CALLERS), ("direct", merging, "fp32", CALLERS[:1]),
                ("HTTP", merging, "fp32", CALLERS), ("HTTP, fp16", merging, "fp16", CALLERS[1:2]),
                ("handle, unmerged", single, "fp32", CALLERS[1:2])]  # fmt: skip
        running = None
        try:
            for way, config, dtype, numbers in ways:
                if running is not config:  # one service at a time, so that an idle one takes no core
                    if running:
                        stop_rewards(running.name)
                    running = config
                    deploy_rewards(config, "/")
                    await_rewards(config.name, config.wait_s, print)
                for callers in numbers:
                    transport = way.partition(",")[0]
                    trainers = [
                        Trainer.remote(transport, url, config.name, given.rows, world.latent, i, dtype)
                        for i in range(callers)
                    ]
                    found = rounds(trainers, base, given)
                    for trainer in trainers:
                        ray.kill(trainer)
                    print(f"{way}, {callers} trainers: {found['ratio']:.2f} of one process", flush=True)
                    rows.append({"way": way, "trainers": callers} | found)
        finally:
            stop_rewards(running.name)
    show(rows, given)


def show(rows: list[dict], given) -> None:
    based = [speed for row in rows for speed in row["base"]]
    speed = statistics.median(based)
    table = Table("", "trainers", "images/s", "ratio", "range", "lost", "p50 s", "p99 s", "calls", "CPU ms")
    table.title = f"{given.world}: calls of {given.rows} latents, scores and gradients, batches of up to {given.batch}"
    table.add_row("one process", "", f"{speed:.2f}", "1.00", "", "", "", "", "", "")
    for row in rows:
        low, high = min(row["ratios"]), max(row["ratios"])
        table.add_row(
            row["way"], str(row["trainers"]), f"{row['images_per_second']:.2f}",
            f"{row['ratio']:.2f}", f"{low:.2f}-{high:.2f}",
            f"{1 - row['ratio']:.0%}", f"{row['p50_s']:.3f}", f"{row['p99_s']:.3f}", str(row["calls"]),
            f"{row['cpu_ms']:.1f}",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    print(f"one process was measured {len(based)} times: {min(based):.2f} to {max(based):.2f} images/s")
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.exit(guarded(main))
