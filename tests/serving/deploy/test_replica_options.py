"""What a replica asks Ray for."""

import pytest

from dipp_ray.config import RoleSection
from dipp_ray.serving.deploy.application import KEEP_MEMORY, replica_options


@pytest.fixture(autouse=True)
def no_settings_of_glibc(monkeypatch):
    for name in ("MALLOC_MMAP_THRESHOLD_", *KEEP_MEMORY):
        monkeypatch.delenv(name, raising=False)


def test_one_on_the_cpu_keeps_its_memory():
    assert replica_options(RoleSection(cpus=2))["runtime_env"]["env_vars"].items() >= KEEP_MEMORY.items()
    assert "runtime_env" not in replica_options(RoleSection(gpus=0.5))


def test_settings_of_glibc_that_the_driver_was_given_stay(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    assert not replica_options(RoleSection())["runtime_env"].get("env_vars")
