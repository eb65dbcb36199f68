"""A file of a person's that is called like a module: it does not take the module's place in Ray's processes."""

import os
import sys
from pathlib import Path

import pytest

from dipp_ray.errors import UserError
from dipp_ray.import_path import drivers_folders_last, refuse_shadows

LIBRARY = os.path.dirname(os.__file__)


def test_the_drivers_folders_are_looked_into_last_in_a_process_of_rays(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/ray/workers/default_worker.py"])
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setattr(
        sys, "path", ["/jobs", "/home/me", "/ray/workers", "/mine", "/usr/lib/python3.zip", LIBRARY, "/site-packages"]
    )
    drivers_folders_last()
    assert sys.path == [
        "/ray/workers", "/mine", "/usr/lib/python3.zip", LIBRARY, "/site-packages", "/jobs", "/home/me",
    ]  # fmt: skip


def test_elsewhere_nothing_moves(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dipp-ray"])
    monkeypatch.setattr(sys, "path", ["/home/me", LIBRARY])
    drivers_folders_last()
    assert sys.path == ["/home/me", LIBRARY]


@pytest.mark.parametrize("path", ["numpy.py", "pydoc.py", "pandas/__init__.py"])
def test_what_ray_imports_before_us_is_refused(tmp_path, path):
    refuse_shadows([str(tmp_path)])
    (tmp_path / "random.py").touch()
    (tmp_path / "gzip").mkdir()  # a folder of data
    refuse_shadows([str(tmp_path)])
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).touch()
    name = Path(path).parts[0].removesuffix(".py")
    with pytest.raises(UserError, match=f"would be taken for Python's or Ray's own {name}"):
        refuse_shadows([str(tmp_path)])


SHADOWED = """
import sys
from dipp_ray.cli import guarded
from dipp_ray.connecting import connect

def work():
    connect()
    import ray
    from dipp_ray.roles.process import free_port
    print("in a process of Ray's:", ray.get(ray.remote(num_cpus=0)(free_port).remote(20000, 30000)))
    ray.shutdown()

sys.exit(guarded(work))
"""


@pytest.mark.slow
def test_a_role_starts_beside_files_called_like_modules(tmp_path):
    import subprocess

    for name in ("random", "queue", "types", "torch", "tokenizers", "diffusers", "statistics", "socket"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was shadowed')")
    script = tmp_path / "scripts" / "work.py"
    script.parent.mkdir()
    script.write_text(SHADOWED)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "PYTHONPATH")},
    )  # fmt: skip
    assert "in a process of Ray's: 2" in done.stdout, done.stdout + done.stderr
