import importlib
import sys
from pathlib import Path

import pytest

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def script(monkeypatch):
    """`script("align")` is the module jobs/align.py, imported as Python does when it is run."""
    monkeypatch.syspath_prepend(JOBS)

    def load(name):
        monkeypatch.setattr(sys, "argv", [str(JOBS / f"{name}.py")])
        return importlib.import_module(name)

    return load
