"""One Ray session for all tests of a process that need one."""

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

# Ray reads these when it is first imported. Sockets lie under RAY_TMPDIR, and their paths must be short.
RAY_TMPDIR = f"/tmp/dr-{os.getpid()}"
os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1", RAY_TMPDIR=RAY_TMPDIR)
# Actors that a test module defines are imported by Ray's workers from where pytest found them.
TESTS = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, [TESTS, *(path for path in TESTS.iterdir() if path.is_dir())]))


# Whether the session below has been opened: until then no test may have started a Ray, as its first calls do by
# themselves, for with another order of the tests it would be the one that the session finds in its way.
OPENED = pytest.StashKey[bool]()


@pytest.fixture(autouse=True)
def _no_ray_by_accident(request):
    yield
    ray = sys.modules.get("ray")
    if ray and not request.config.stash.get(OPENED, False) and ray.is_initialized():
        ray.shutdown()
        pytest.fail("this test started a Ray of its own; it should ask for ray_session, or do without")


@pytest.fixture(scope="session")
def ray_session(pytestconfig):
    """A connected Ray of its own: 8 CPUs, never a cluster that happens to run on this machine."""
    pytestconfig.stash[OPENED] = True
    os.makedirs(RAY_TMPDIR, exist_ok=True)
    import ray

    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=150 * 1024 * 1024,
        log_to_driver=False,
    )
    yield ray
    ray.shutdown()
    shutil.rmtree(RAY_TMPDIR, ignore_errors=True)


@pytest.fixture(scope="module")
def serve_url(ray_session):
    """Ray Serve with HTTP on a free port of loopback; tests before may have started it without."""
    from ray import serve

    serve.shutdown()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "WARNING"})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
