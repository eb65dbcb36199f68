"""Four trainers as four Ray jobs on one cluster of many nodes, which share one reward service.

    python jobs/four_trainers.py [--seconds 30] [--out DIR]

Each has one rank a group, a teacher and a text encoder on a node of its own; the service has another one and is called
by HTTP, a token a trainer. All four have the same settings and the same seed. They are measured as they are; then
while the fourth, beside its training, floods the service with calls that ignore Retry-After; then again; then while the
third one's driver is killed and submitted again; then again. Written to DIR/figures.json: steps a second of each in
each of these times, and whether the four hold the same weights to the bit at the last step that all have committed.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "cluster"), str(HERE.parent / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:3])  # Ray's workers find the tests' reward there
os.environ.update(OMP_NUM_THREADS="1", RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")

import psutil  # noqa: E402
import yaml  # noqa: E402
from local import local_cluster, parse_node  # noqa: E402

from settings import tiny_config  # noqa: E402
from tiny import pixart_pipeline, prompt_file  # noqa: E402

TRAINERS = ("one", "two", "killed", "hostile")
EVERY = 10  # steps between checkpoints
CONNECTIONS = 32
STARTS_S = 400.0


def token_of(name: str) -> str:
    return f"{name}-0123456789abcdef"


def write_configs(home: Path, port: int) -> None:
    """The service's configuration, and each trainer's."""
    pipeline, prompts = pixart_pipeline(home / "teacher"), prompt_file(home / "prompts.parquet")
    (home / "tokens").write_text("".join(f"{name}:{token_of(name)}\n" for name in TRAINERS))
    model = {"name": "ink", "model": "settings:InkReward", "role": {"cpus": 0.5, "labels": {"role": "service"}}}
    service = {"name": "shared", "models": [model], "vae": str(pipeline), "deterministic": True, "batch_rows": 16}
    service["http"] = {"port": port, "tokens": str(home / "tokens")}
    (home / "service.yaml").write_text(yaml.safe_dump(service))
    for name in TRAINERS:
        (home / f"{name}.token").write_text(token_of(name))
        labels = f"labels={{trainer: {name}}}"
        config = tiny_config(
            home / "runs",
            pipeline,
            prompts,
            f"run.name={name}",
            "run.steps=100000",
            *(f"roles.{role}.{labels}" for role in ("generator", "score", "teacher", "text")),
            *(f"roles.{role}.cpus=0.2" for role in ("generator", "score", "teacher", "text")),
            f"reward={{urls: ['http://127.0.0.1:{port}'], token: {home / f'{name}.token'}}}",
            f"checkpoint.every={EVERY}",
            "checkpoint.keep=1000",
            "log.samples_every=100000",
        )
        (home / f"{name}.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))


def steps_of(home: Path, name: str) -> list[tuple[int, float]]:
    """(step, when it was finished) of each."""
    from dipp_ray.reporting.metrics import read_metrics

    return [(record["step"], record["time"]) for record in read_metrics(home / "runs" / name) if record["step"]]


def pace(home: Path, begin: float, end: float) -> dict[str, float]:
    """Steps a second of each trainer between the two times."""
    return {
        name: round(sum(begin <= when < end for _, when in steps_of(home, name)) / (end - begin), 3)
        for name in TRAINERS
    }


def wait_for(there, what: str, seconds: float = STARTS_S) -> None:
    until = time.monotonic() + seconds
    while not there():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.5)


def driver_of(config: Path) -> psutil.Process:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            words = process.cmdline()
            if str(config) in words and "python" in words[0]:
                return process
    raise RuntimeError(f"no driver of {config} is there")


def flood(url: str, token: str, seconds: float) -> dict[str, int]:
    """Calls of CONNECTIONS callers, each with the next one as soon as the last one ended; how they were answered."""
    import numpy as np
    from flood import flooded

    return asyncio.run(flooded(url, token, CONNECTIONS, np.zeros((4, 1, 8, 8), np.float32), seconds))


def same_weights(home: Path) -> tuple[int, bool]:
    """(the last step that all have committed, whether their weights are the same to the bit there)."""
    import torch

    from dipp_ray.checkpoints.store import CheckpointStore

    stores = [CheckpointStore(home / "runs" / name / "checkpoints", say=lambda _: None) for name in TRAINERS]
    step = max(set.intersection(*({*store.steps()} for store in stores)))
    states = [store.read_group(store.require(step), "generator")[0] for store in stores]
    return step, all(torch.equal(state[name], value) for state in states[1:] for name, value in states[0].items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    given = parser.parse_args()
    home = given.out.resolve()
    (home / "empty").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        dashboard = port + 1
    write_configs(home, port)
    nodes = [f"name={name},cpus=1,labels=trainer:{name}" for name in TRAINERS]
    nodes.append("name=service,cpus=1,labels=role:service")
    with local_cluster([parse_node(node) for node in nodes], dashboard=True, dashboard_port=dashboard) as cluster:
        from ray.job_submission import JobSubmissionClient

        client = JobSubmissionClient(cluster.jobs_address)

        def submit(script: str, config: str) -> str:
            # In a folder of its own: a run that lay in it would be deleted with the job.
            return client.submit_job(entrypoint=f"cd {home}/empty && {sys.executable} {HERE / script} {home / config}")

        jobs = {"service": submit("serve_rewards.py", "service.yaml")}
        wait_for(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), "the service")
        jobs |= {name: submit("align.py", f"{name}.yaml") for name in TRAINERS}
        try:
            wait_for(lambda: all(len(steps_of(home, name)) > EVERY for name in TRAINERS), "the trainers' first steps")
            found = {"seconds": given.seconds, "connections": CONNECTIONS, "pace": {}}

            def measure(when: str, seconds: float = given.seconds) -> None:
                begin = time.time()
                time.sleep(seconds)
                found["pace"][when] = pace(home, begin, time.time())
                print(when, found["pace"][when], flush=True)

            measure("before")
            begin = time.time()
            found["flood_answered"] = flood(f"http://127.0.0.1:{port}", token_of("hostile"), given.seconds)
            found["pace"]["flood"] = pace(home, begin, time.time())
            print("flood", found["pace"]["flood"], found["flood_answered"], flush=True)
            measure("between")
            struck = time.time()
            driver_of(home / "killed.yaml").kill()
            reached = steps_of(home, "killed")[-1][0]
            wait_for(lambda: client.get_job_status(jobs["killed"]) == "FAILED", "that the job is seen to fail")
            jobs["killed"] = submit("align.py", "killed.yaml")
            wait_for(lambda: steps_of(home, "killed")[-1][1] > struck + 1, "the resubmitted job's first step")
            found["pace"]["killed and submitted again"] = pace(home, struck, time.time())
            found["resubmitted"] = {
                "after_step": reached,
                "goes_on_at": next(step for step, when in steps_of(home, "killed") if when > struck + 1),
                "seconds_to_next_step": round(steps_of(home, "killed")[-1][1] - struck, 1),
            }
            print(found["pace"]["killed and submitted again"], found["resubmitted"], flush=True)
            measure("after")
            wait_for(lambda: steps_of(home, "killed")[-1][0] > reached + EVERY, "that they have a step in common")
        except BaseException:
            for name, job in jobs.items():
                print(name, client.get_job_status(job), client.get_job_logs(job)[-3000:], flush=True)
            raise
        for name in (*TRAINERS, "service"):
            client.stop_job(jobs[name])
        wait_for(lambda: all(client.get_job_status(job).is_terminal() for job in jobs.values()), "the jobs' end", 60)
    found["common_step"], found["same_weights"] = same_weights(home)
    (home / "figures.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found))
    return 0 if found["same_weights"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
