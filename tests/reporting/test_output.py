"""What is printed never ends what prints."""

import os
import subprocess
import sys

import pytest

# Prints more than any pipe's buffer holds, then does its work.
PRINTS = """
import sys
import rich
from rich.table import Table
from dipp_ray.cli import guarded

def work():
    table = Table(title="gold ↑ [σ]")
    table.add_row("a quite long cell — with a dash" * 3)
    for _ in range(1000):
        print("gold ↑ −1.35")
        rich.print(table)
        print("∇ on the error stream", file=sys.stderr)
    open(sys.argv[1], "w").write("done")

sys.exit(guarded(work))
"""


def started(tmp_path, **settings):
    command = [sys.executable, "-c", PRINTS, str(tmp_path / "done")]
    return subprocess.Popen(command, **settings)


def test_a_pipe_whose_reader_is_gone(tmp_path):
    process = started(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read().decode().splitlines()[0].startswith("∇")
    assert process.wait() == 0 and (tmp_path / "done").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_disk_that_is_full(tmp_path):
    with open("/dev/full", "w") as full:
        assert started(tmp_path, stdout=full, stderr=full).wait() == 0
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_knows_few_letters(tmp_path, encoding):
    process = started(
        tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": encoding}
    )
    said, errors = process.communicate()
    assert process.returncode == 0 and (tmp_path / "done").exists()
    assert said.splitlines()[0] == b"gold ? ?1.35" and errors.splitlines()[0] == b"? on the error stream"


def test_no_output_at_all(tmp_path):
    def close():
        os.close(1)
        os.close(2)

    assert started(tmp_path, preexec_fn=close).wait() == 0
    assert (tmp_path / "done").exists()
