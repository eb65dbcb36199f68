"""The local cluster: its node grammar, and once for real: jobs, labels, placement, a lost node, and the end of it."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "local.py"
spec = importlib.util.spec_from_file_location("cluster_local", SCRIPT)
local = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = local  # dataclasses look their module up
spec.loader.exec_module(local)


def test_a_node_is_read():
    text = "name=a,cpus=2,gpus=1,accelerator=H100,labels=role:teacher/zone:b,resources=teacher_gpu:1/disk:.5"
    assert local.parse_node(text) == local.NodeSpec(
        "a", 2, 1, "H100", {"role": "teacher", "zone": "b"}, {"teacher_gpu": 1, "disk": 0.5}
    )
    assert local.parse_node("cpus=1", "node-0").name == "node-0"


@pytest.mark.parametrize("part", ["cpu=2", "cpus", "cpus=two", "labels=teacher", "resources=disk:many"])
def test_a_faulty_node_is_named(part):
    with pytest.raises(ValueError, match=f"'{part}' in node"):
        local.parse_node(f"name=a,{part}")


JOB = """
import ray
from dipp_ray.training.placement import cluster_nodes, reserve
from dipp_ray.training.plan import Request, plan

ray.init(log_to_driver=False)
names = {node.id: node.name for node in cluster_nodes()}
print("NODES", *sorted(names.values()))

@ray.remote
class Worker:
    def node(self):
        return names[ray.get_runtime_context().get_node_id()]

asked = [
    Request("generator", 0, 1, labels={"role": "trainer"}),
    Request("teacher", 0, 1, resources={"teacher_gpu": 1}),
    Request("score", 0, 0.5, gpus=0.5, accelerator="H100"),
    Request("text", 0, labels={"role": "!trainer"}),
]
held = reserve([asked], 60)
actors = [Worker.options(**held.options(r.role, r.index)).remote() for r in asked]
print("PLACED", *ray.get([actor.node.remote() for actor in actors]))
held.release()
print("POSSIBLE", plan([Request("score", 0, gpus=2)], cluster_nodes()).possible)
"""


@pytest.mark.slow
def test_jobs_land_on_their_nodes_and_all_of_it_ends(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = [
        "name=trainer,cpus=2,labels=role:trainer",
        "name=teacher,cpus=1,resources=teacher_gpu:1",
        "name=big,cpus=1,gpus=1,accelerator=H100",
    ]
    command = [sys.executable, str(SCRIPT), "--dashboard", "--dashboard-port", str(port)]
    for node in nodes:
        command += ["--node", node]
    cluster = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    children = []
    try:
        lines = []
        while not lines or lines[-1] != "Ctrl-C ends it.":
            line = cluster.stdout.readline()
            assert line, "the cluster ended before it was up"
            lines.append(line.strip())
        assert f"jobs address  http://127.0.0.1:{port}" in lines
        children = descendants(cluster.pid)
        assert len(children) >= 5
        (tmp_path / "job.py").write_text(JOB)
        ray = Path(sys.executable).with_name("ray")
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_AUTH_MODE": "disabled"}
        submit = [ray, "job", "submit", "--address", f"http://127.0.0.1:{port}", "--working-dir", ".", "--"]
        done = subprocess.run(
            [*submit, "python", "job.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "NODES big head teacher trainer" in done.stdout
        placed = next(line for line in done.stdout.splitlines() if line.startswith("PLACED")).split()
        assert placed[1:4] == ["trainer", "teacher", "big"]
        assert placed[4] != "trainer"
        assert "POSSIBLE False" in done.stdout
    finally:
        children += descendants(cluster.pid)
        cluster.send_signal(signal.SIGTERM)
        code = cluster.wait(60)
    assert code == 0
    end = time.monotonic() + 15  # the agents notice by themselves that their node is gone
    while (left := [pid for pid in children if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left


LOST_NODE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from local import local_cluster, parse_node

quick = dict(
    health_check_initial_delay_ms=500,
    health_check_period_ms=500,
    health_check_timeout_ms=500,
    health_check_failure_threshold=4,
)
with local_cluster([parse_node("name=a,cpus=1"), parse_node("name=b,cpus=1")], system_config=quick) as cluster:
    import ray
    ray.init(address=cluster.address, log_to_driver=False)
    def alive():
        return sorted(n["NodeName"] for n in ray.nodes() if n["Alive"])
    print("ALIVE", *alive())
    cluster.kill("b")
    while len(alive()) > 2:
        time.sleep(.1)
    print("ALIVE", *alive())
    cluster.add(parse_node("name=c,cpus=1"))
    print("ALIVE", *alive())
    ray.shutdown()
"""


@pytest.mark.slow
def test_a_node_can_be_lost_and_added():
    done = subprocess.run(
        [sys.executable, "-c", LOST_NODE, str(SCRIPT.parent)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    seen = [line for line in done.stdout.splitlines() if line.startswith("ALIVE")]
    assert seen == ["ALIVE a b head", "ALIVE a head", "ALIVE a c head"]


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found, new = [], [pid]
    while new:
        new = [child for child, parent in pairs if parent in new]
        found += new
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
