"""The page on the Python API: what it names is there, and what it prints is what comes out."""

import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text()


def test_every_name_is_there():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `dipp_ray.")]
    named = [name for row in rows for name in re.findall(r"`(dipp_ray\.[\w.]+)", row.split("|")[1])]
    assert len(named) >= 10
    for name in named:
        module, _, attribute = name.rpartition(".")
        if attribute in ("diffusion", "alignment"):
            importlib.import_module(name)
        else:
            assert hasattr(importlib.import_module(module), attribute), name


def test_what_is_printed_is_what_comes_out(monkeypatch, capsys):
    *_, code, printed = re.findall(r"```(?:python)?\n(.*?)```", PAGE, re.S)
    monkeypatch.chdir(ROOT)
    exec(code, {})
    assert capsys.readouterr().out == printed
