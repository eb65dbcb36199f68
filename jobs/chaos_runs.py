"""A run of chaos: its configuration, the training, what it left behind, how it compares with the undisturbed one."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import ray
import torch
from chaos_cells import EVERY, ChaosRun
from ray import serve
from ray.util import placement_group_table

from dipp_ray.alignment.questions import generate
from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.data.prompts import read_prompts
from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.reporting.events import read_events
from dipp_ray.reporting.metrics import read_metrics
from dipp_ray.storage.remote import file_system
from dipp_ray.training import train as training
from dipp_ray.training.plain import plain_loop
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}
NODES = ["name=rest,cpus=2,labels=role:rest", *(f"name={n},cpus=1,labels=role:trainer" for n in ("one", "two"))]
STRAIGHT = 16 * EVERY  # steps of the undisturbed run; the longest that it is compared with
# Where sizes changed, sums were made in another order: what fp32 may make of that by the end, relative to the largest
# value. Measured: docs/chaos.md.
DRIFT = 1e-4
SAME = ("score_loss", "score_gap", "reward", "grad_norm/generator", "grad_norm/score", "divergence_norm")


def world_of(folder: Path) -> tuple[Path, Path, Path]:
    """(folder, pipeline, prompts), made where they are not there."""
    home = folder.resolve()
    home.mkdir(parents=True, exist_ok=True)
    world = home, home / "teacher", home / "prompts.parquet"
    if not world[2].exists():
        pixart_pipeline(world[1])
        prompt_file(world[2])
    return world


def config_of(world, name: str, zero: int, steps: int, *settings: str):
    trained = f"{{workers: {{min: 1, max: 2}}, cpus: 0.5, zero_stage: {zero}, persistence_threshold: 0,"
    trained += " labels: {role: trainer}}"
    return tiny_config(
        *world,
        f"run.name={name}",
        f"run.steps={steps}",
        f"roles.generator={trained}",
        f"roles.score={trained}",
        "roles.teacher.labels={role: rest}",
        "roles.text.labels={role: rest}",
        "roles.reward.labels={role: rest}",
        "roles.heartbeat_s=15",
        "roles.spares=true",
        "roles.wait_s=180",
        "objective.score_updates=2",
        f"checkpoint.every={EVERY}",
        "checkpoint.memory_every=2",
        f"log.samples_every={EVERY}",
        *settings,
    )


def straight_of(world, zero: int):
    return config_of(world, f"straight-{zero}", zero, STRAIGHT, "checkpoint.keep=1000", "roles.spares=false")


def config_of_run(world, run: ChaosRun):
    settings = [f"checkpoint.url=s3://chaos/{run.name}"] if run.kind == "store" else []
    return config_of(world, run.name, run.zero, run.steps, *settings)


def trained(address: str, config, watched=None) -> list[str]:
    """Train in this process, within `watched`; returns what was left behind."""
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        with watched or contextlib.nullcontext():
            training.train(config, lambda line: print(f"    {line}", flush=True))
        return left_behind()
    finally:
        ray.shutdown()
        serve.context._set_global_client(None)  # else the next cluster is asked for this one's Serve


def left_behind(patience_s: float = 10.0) -> list[str]:
    """Actors but Serve's own, placement groups and applications that are there, after Ray has had time to end them."""
    until = time.monotonic() + patience_s
    while True:
        table = ray._private.state.actors().values()
        own = ("ServeController", "ProxyActor")
        found = [a["ActorClassName"] for a in table if a["State"] != "DEAD" and a["ActorClassName"] not in own]
        found += [f"placement group {p['state']}" for p in placement_group_table().values() if p["state"] != "REMOVED"]
        found += [f"application {name}" for name in serve.status().applications]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.5)


# -- compared ----------------------------------------------------------------------------------------------------------


def compared(config, straight) -> dict:
    """Differences from the undisturbed run after the same step, relative to the largest value; 0.0: not one bit."""
    step = config.run.steps
    ours, theirs = (_state(one, step) for one in (config, straight))
    found = {"weights": 0.0, "different_at": first_difference(config, straight)}
    for group, tensors in theirs.items():
        assert tensors.keys() == ours[group].keys()
        found["weights"] = max([found["weights"], *(_relative(ours[group][n], t) for n, t in tensors.items())])
    found["x0"] = _relative(*(_average_x0(straight, state["generator"]) for state in (ours, theirs)))
    losses = [[record["score_loss"] for record in _steps(one, step)] for one in (config, straight)]
    found["loss"] = max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True))
    return found


def first_difference(config, straight) -> int | None:
    """The first step of which what was measured differs in any bit; None: there is none."""
    pairs = zip(_steps(config, config.run.steps), _steps(straight, config.run.steps), strict=True)
    return next((ours["step"] for ours, theirs in pairs if any(ours.get(k) != theirs.get(k) for k in SAME)), None)


def _steps(config, last: int) -> list[dict]:
    return [record for record in read_metrics(config.path) if 0 < record["step"] <= last]


def _state(config, step: int) -> dict[str, dict]:
    store = CheckpointStore(config.checkpoints, say=lambda _: None)
    checkpoint = store.require(step)
    return {group: store.read_group(checkpoint, group)[0] for group in ("generator", "score")}


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max()) / (float(theirs.abs().max()) or 1.0)


def _average_x0(config, state: dict) -> torch.Tensor:
    """x0 of the moving average on fixed noises."""
    alone = config.model_copy(update={"reward": type(config.reward)()})
    loop = plain_loop(alone, read_prompts(config.data.prompts, config.data.column))
    weights = {name.removeprefix("ema/"): value for name, value in state.items() if name.startswith("ema/")}
    loop.generator.network.network.load_state_dict(weights, strict=False)
    with torch.no_grad():
        z = Draws(config.run.seed, EVALUATION, 0, range(8)).normal("z", loop.latent_shape)
        return generate(loop.generator.network, loop.one_step, z, loop.text(loop.prompts.first(8)))


# -- what the run itself says ------------------------------------------------------------------------------------------


def with_events(rows: list[dict], config, difference: dict) -> None:
    """To each row what events and metrics say of the time until the next one."""
    events = read_events(config.path)
    for number, row in enumerate(rows):
        after = rows[number + 1] if number + 1 < len(rows) else None
        until = after["at"] if after and "at" in after else float("inf")
        own = [event for event in events if row.get("at", until) <= event["time"] < until]
        row["steps_lost"] = sum(event["steps_lost"] for event in own if event["event"] == "recovered")
        row["recoveries"] = sum(event["event"] == "recovered" for event in own)
        row["events"] = [f"{event['event']}: {event['reason']}" for event in own]
        begin, end = row["step"] - 1, after["step"] - 1 if after else float("inf")
        at = difference["different_at"]
        row["same_until_next"] = at is None or not begin <= at < end


# -- S3 ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def bucket(environment: dict):
    """An S3 API on loopback with the bucket `chaos`; `environment` learns the way to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    environment.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    try:
        until = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < until:
            time.sleep(0.1)
        file_system("s3://chaos")[0].call_s3("create_bucket", Bucket="chaos")
        yield
    finally:
        server.terminate()
        server.wait(20)


def orphans(config) -> list[str]:
    """Uploads that were begun and never ended, and objects of no committed step."""
    fs, root = file_system(config.checkpoints)
    found = [upload["Key"] for upload in fs.call_s3("list_multipart_uploads", Bucket="chaos").get("Uploads", [])]
    objects = [path.removeprefix(f"{root}/") for path in fs.find(root)]
    committed = {name.split("/")[0] for name in objects if name.endswith("/COMMITTED.json")}
    return found + [name for name in objects if "/" in name and name.split("/")[0] not in committed]


def fresh(config) -> None:
    shutil.rmtree(config.path, ignore_errors=True)
