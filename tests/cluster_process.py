"""A cluster of unlike nodes (cluster/local.py) in a process of its own, for tests that submit jobs to it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass
class ClusterProcess:
    jobs_address: str
    pid: int


@contextmanager
def cluster_process(nodes: list[str]) -> Iterator[ClusterProcess]:
    """A cluster with dashboard of `nodes`, as cluster/local.py reads them, and a head without CPUs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, ROOT / "cluster" / "local.py", "--dashboard", "--dashboard-port", str(port)]
    command += [part for node in nodes for part in ("--node", node)]
    patient = os.environ | {"RAY_raylet_start_wait_time_s": "180"}  # on a machine where others compute too
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=patient)
    try:
        for line in process.stdout:
            if line.startswith("Ctrl-C"):
                break
        else:
            raise AssertionError("the cluster ended before it was up")
        yield ClusterProcess(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def environment_of_a_client() -> dict[str, str]:
    """This process's environment without what it tells its own Ray."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "disabled"
    }
