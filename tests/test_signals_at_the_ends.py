"""Signals before a command's work and after it: neither ends it in another way than its work did."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dipp_ray import cli
from dipp_ray.errors import UserError
from dipp_ray.training.train import interrupts

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_ends_after_its_step_and_a_second_signal_ends_it_at_once(number):
    said = []
    run = SimpleNamespace(interrupted=False, say=said.append)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with interrupts(run):
            os.kill(os.getpid(), number)
            assert run.interrupted and said == [
                "stopping after this step, with a checkpoint; once more to stop at once"
            ]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)
        with interrupts(run):
            assert signal.getsignal(number) == signal.SIG_IGN, "as nohup asks for"
    finally:
        signal.signal(number, before)
