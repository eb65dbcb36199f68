"""What a flood of calls that ignores Retry-After does to another trainer: an option of `bench_rewards.py`; the flood
itself is a part of `four_trainers.py` too."""

import asyncio
import statistics
import time
from collections import Counter
from pathlib import Path

import numpy as np
import ray

FLOODER, QUIET = "flooder-0123456789", "quiet-0123456789abc"  # tokens
AGAIN_S = 0.05  # so soon the flood comes again, whatever it is told


def tokens_file(folder: Path) -> str:
    """A file of both tokens."""
    (folder / "tokens").write_text(f"flooder:{FLOODER}\nquiet:{QUIET}\n")
    return str(folder / "tokens")


async def flooded(url: str, token: str, connections: int, x: np.ndarray, seconds: float) -> dict[str, int]:
    """Score latents `x`, again and again, from so many callers under one token, each with its next call AGAIN_S after
    the last one ended; returns how often they were answered what."""
    import aiohttp

    from dipp_ray.serving.contract.records import REQUEST, SAFETENSORS, ScoreOptions
    from dipp_ray.serving.contract.wire import pack

    options = ScoreOptions(prompts=["a bold upright handwritten one"] * len(x), space="latents", gradient=True)
    body = pack({"x": x}, REQUEST, options)
    headers = {"Content-Type": SAFETENSORS, "Authorization": f"Bearer {token}"}
    found: Counter[str] = Counter()
    until = time.monotonic() + seconds

    async def caller(session) -> None:
        while time.monotonic() < until:
            try:
                async with session.post(url + "/v1/score", data=body, headers=headers) as reply:
                    await reply.read()
                    found[str(reply.status)] += 1
            except (aiohttp.ClientError, OSError) as error:
                found[type(error).__name__] += 1
            await asyncio.sleep(AGAIN_S)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:
        await asyncio.gather(*(caller(session) for _ in range(connections)))
    return dict(found)


@ray.remote(num_cpus=0)
class Flood:
    """`connections` callers under one token."""

    def __init__(self, url: str, connections: int, rows: int, latent: tuple[int, int, int]):
        self.url, self.connections = url, connections
        self.x = np.random.default_rng(0).standard_normal((rows, *latent), dtype=np.float32)

    async def run(self, seconds: float) -> dict[str, int]:
        """How often it was answered what."""
        return await flooded(self.url, FLOODER, self.connections, self.x, seconds)


@ray.remote(num_cpus=0)
class Quiet:
    """A trainer who sends its next call when the last one is answered."""

    def __init__(self, url: str, rows: int, latent: tuple[int, int, int]):
        from dipp_ray.serving.client.by_http import OF_CALLER, HttpTransport
        from dipp_ray.serving.client.reward_client import RewardClient

        transport = HttpTransport([url], QUIET, "fp32", OF_CALLER)
        self.client = RewardClient(transport, 600, on_nonfinite="raise", space="latents", trainer="quiet")
        self.x = np.random.default_rng(1).standard_normal((rows, *latent), dtype=np.float32)

    async def run(self, seconds: float) -> list[float]:
        """Seconds of each call."""
        spent, until = [], time.monotonic() + seconds
        while not spent or time.monotonic() < until:
            begin = time.monotonic()
            await self.client.score(self.x, ["a bold upright handwritten two"] * len(self.x), gradient=True)
            spent.append(time.monotonic() - begin)
        return spent


def measure(url: str, latent: tuple[int, int, int], given) -> None:
    """Print the quiet trainer's p50 alone and beside the flood, in turns, for a machine's speed drifts."""
    quiet, flood = Quiet.remote(url, given.rows, latent), Flood.remote(url, given.flood, given.rows, latent)
    ray.get(quiet.run.remote(1.0))
    alone: list[float] = []
    beside: list[float] = []
    ratios, replies = [], Counter()
    for _ in range(given.rounds):
        before = ray.get(quiet.run.remote(given.seconds))
        flooding = flood.run.remote(given.seconds + 3)
        time.sleep(2)  # until it has come up
        during = ray.get(quiet.run.remote(given.seconds))
        replies.update(ray.get(flooding))
        ratios.append(statistics.median(during) / statistics.median(before))
        alone, beside = alone + before, beside + during
        print(f"p50 {1000 * statistics.median(before):.0f} ms alone, {1000 * statistics.median(during):.0f} beside")
    print(
        f"a flood of {given.flood} connections: another trainer's p50 {1000 * statistics.median(alone):.0f} ms alone, "
        f"{1000 * statistics.median(beside):.0f} ms beside it, {statistics.median(ratios):.1f} times "
        f"({min(ratios):.1f} to {max(ratios):.1f}); p99 {1000 * np.percentile(alone, 99):.0f} and "
        f"{1000 * np.percentile(beside, 99):.0f} ms; {len(alone)} and {len(beside)} calls"
    )
    print("the flood was answered " + ", ".join(f"{status} {count} times" for status, count in sorted(replies.items())))
