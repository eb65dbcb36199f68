"""The command itself, when a rank's process is killed or its node lost: one sentence, status 1, nothing left."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

from settings import tiny_config
from tiny import pixart_pipeline, prompt_file

TESTS = Path(__file__).parents[1]
COMMAND = "import sys; from dipp_ray.cli import main; sys.exit(main())"
RANKS = [
    "roles.generator.workers=2",
    "roles.score.workers=2",
    "roles.generator.zero_stage=2",
    "roles.score.zero_stage=2",
    "objective.reward_scale=0",
    "reward.terms=[]",
    "run.steps=2000",
    "roles.failures=0",
]


@pytest.fixture
def config(tmp_path):
    return tiny_config(
        tmp_path, pixart_pipeline(tmp_path / "pipeline"), prompt_file(tmp_path / "prompts.parquet"), *RANKS
    )


def written(config):
    path = config.path.parent / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("GeneratorRank", "generator rank"), ("ScoreRank", "score model rank")])
def test_a_killed_rank_ends_the_command_with_one_sentence(config, kind, name):
    folder = tempfile.mkdtemp(prefix="drk-", dir="/tmp")  # short: Ray's sockets lie in it
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", str(written(config))],
        cwd=config.path.parent, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = config.path / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert command.poll() is None, command.communicate()
        time.sleep(0.05)
    mine = psutil.Process(command.pid).children(recursive=True)
    victim = next(process for process in mine if process.cmdline()[:1] and kind in process.cmdline()[0])
    assert victim.nice() == psutil.Process().nice(), "beside other programs it has as much of a core as they"
    victim.send_signal(signal.SIGKILL)
    out, error = command.communicate(timeout=60)
    assert command.returncode == 1
    said = error.strip().splitlines()
    assert len(said) == 1 and said[0].startswith(f"dipp-ray: {name} "), error
    assert " died " in said[0] and said[0].endswith("the same command goes on from the last checkpoint")
    assert "raylet" not in out and "Traceback" not in out
    psutil.wait_procs(mine, timeout=15)
    assert not [process for process in mine if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_killed_head_ends_the_command_with_one_sentence(config):
    folder = tempfile.mkdtemp(prefix="drh-", dir="/tmp")
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder, "RAY_gcs_rpc_server_reconnect_timeout_s": "12"}
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", str(written(config))],
        cwd=config.path.parent, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = config.path / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert command.poll() is None, command.communicate()
        time.sleep(0.05)
    mine = psutil.Process(command.pid).children(recursive=True)
    next(process for process in mine if "gcs_server" in process.name()).send_signal(signal.SIGKILL)
    out, error = command.communicate(timeout=120)
    assert command.returncode == 1
    said = error.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("dipp-ray: the head of the Ray cluster ("), error
    assert said[0].endswith("the same command goes on from the last checkpoint")
    assert "waiting for the head of the Ray cluster" in out and "Traceback" not in out
    _, left = psutil.wait_procs(mine, timeout=30)
    # Ray's own agents look for their raylet once a while.
    assert not [process for process in left if process.is_running() and "Agent" not in process.name()]


LOST_NODE = """
import sys, threading, time
sys.path[:0] = sys.argv[1:3]
from local import local_cluster, parse_node

quick = dict(
    health_check_initial_delay_ms=500, health_check_period_ms=500, health_check_timeout_ms=500,
    health_check_failure_threshold=4,
)
nodes = ["name=rest,cpus=2,labels=role:rest", *(f"name={n},cpus=1,labels=role:trainer" for n in ("one", "two"))]
with local_cluster([parse_node(text) for text in nodes], system_config=quick) as cluster:
    import ray
    ray.init(address=cluster.address, log_to_driver=False)
    from dipp_ray.config import load_config
    from dipp_ray.data.prompts import read_prompts
    from dipp_ray.errors import RoleFailure
    from dipp_ray.training.session import only_session

    config = load_config(sys.argv[3])
    prompts = read_prompts(config.data.prompts, config.data.column)
    opened = only_session(config, prompts, print)
    session = opened.__enter__()
    session.controller.together("generator", "start")
    where = session.placement.plan.where
    print("ON TWO", *(f"{role}:{index}" for (role, index), node in where.items() if node.name == "two"))
    seen = {}

    def watch():
        while sum(node["Alive"] for node in ray.nodes()) == 4:
            time.sleep(0.05)
        seen["by Ray"] = time.monotonic()

    try:
        for step in session.run_until(0, lambda done: False):
            if step.step == 3:
                threading.Thread(target=watch, daemon=True).start()
                threading.Thread(target=cluster.kill, args=("two",), daemon=True).start()
    except RoleFailure as failure:
        now = time.monotonic()
        print("FAILURE", failure)
        while "by Ray" not in seen:
            time.sleep(0.05)
        print("SECONDS", max(0.0, now - seen["by Ray"]))
    opened.__exit__(None, None, None)
    ray.shutdown()
"""


@pytest.mark.slow
def test_a_lost_node_is_seen_as_soon_as_ray_sees_it(config):
    role = {"cpus": 0.5, "labels": {"role": "trainer"}}
    roles = config.roles.model_copy(
        update={
            "generator": config.roles.generator.model_copy(update=role),
            "score": config.roles.score.model_copy(update=role),
            "teacher": config.roles.teacher.model_copy(update={"labels": {"role": "rest"}}),
            "text": config.roles.text.model_copy(update={"labels": {"role": "rest"}}),
        }
    )
    path = written(config.model_copy(update={"roles": roles}))
    arguments = [sys.executable, "-c", LOST_NODE, str(TESTS.parent / "cluster"), str(TESTS), str(path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    failure = next(line for line in done.stdout.splitlines() if line.startswith("FAILURE"))
    assert " died " in failure and ("its node was lost" in failure or "its node is lost" in failure), failure
    there = next(line for line in done.stdout.splitlines() if line.startswith("ON TWO")).split()[2:]
    names = {"generator": "generator rank", "score": "score model rank"}
    assert failure.startswith(tuple(f"FAILURE {names[one.split(':')[0]]} {one.split(':')[1]} died" for one in there))
    assert float(done.stdout.split("SECONDS")[1].split()[0]) < 2
