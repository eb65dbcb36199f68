"""Signals before a command's work and after it: neither ends it in another way than its work did."""

import os
import signal
import subprocess
import sys

import pytest

from dipp_ray import cli
from dipp_ray.errors import UserError

DONE = """
import atexit, sys, time
from dipp_ray.cli import guarded

def work():
    atexit.register(lambda: (print("ending", flush=True), time.sleep(0.5), print("ended", flush=True)))
    print("the last line", flush=True)

sys.exit(guarded(work))
"""


def test_ctrl_c_after_the_last_line_changes_nothing():
    command = [sys.executable, "-c", DONE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["the last line\n", "ending\n"]
        process.send_signal(signal.SIGINT)
        out, error = process.communicate()
    assert (process.returncode, out, error) == (0, "ended\n", "")


def test_usr1_before_the_service_is_there_does_not_end_it(monkeypatch, capsys, tmp_path):
    before = signal.signal(signal.SIGUSR1, lambda *_: pytest.fail("it would have ended the process"))

    def read(*given):
        os.kill(os.getpid(), signal.SIGUSR1)
        raise UserError("read")

    monkeypatch.setattr("dipp_ray.settings.load_settings", read)
    try:
        assert cli.main(["serve-rewards", str(tmp_path / "none.yaml")]) == 2
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert capsys.readouterr().err == "dipp-ray: read\n"
