import os
import pty
import subprocess
import sys

from dipp_ray.reporting import pace
from dipp_ray.reporting.progress import ProgressLine, duration, number

RUN = """
from dipp_ray.reporting.progress import ProgressLine
with ProgressLine(total_steps=30, start_step=10, label="align") as line:
    for step in range(11, 31):
        line.update(step, {"reward": step / 10, "images_per_second": 31.04, "grad_norm/score": float("nan")}
                    | ({"held_out/gold": -1.24} if step == 11 else {}))
    line.say("saved [step 30]")
"""


def test_a_pipe_gets_plain_lines_first_and_last():
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": "40"}
    out = subprocess.run([sys.executable, "-c", RUN], capture_output=True, check=True, env=environment).stdout
    assert not any(byte < 32 and byte != 10 for byte in out)
    first, last, said = out.decode().splitlines()
    assert (
        first.startswith("align 11/30 · 31.0 images/s · ")
        and "left · reward 1.10 · held-out gold −1.24 at step 11" in first
    )
    assert last == "align 30/30 · 31.0 images/s · reward 3.00 · held-out gold −1.24 at step 11 · score grad not finite"
    assert said == "saved [step 30]"


def test_a_terminal_gets_one_live_line():
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "140"}
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        out = b""
        try:
            while chunk := os.read(leader, 65536):
                out += chunk
        except OSError:  # the other end is closed
            pass
    os.close(leader)
    assert process.returncode == 0
    assert b"\x1b[2K" in out and b"30/30" in out and b"saved [step 30]" in out
    assert out.count(b"\n") <= 4  # rewritten in place, not scrolled


def test_plain_lines_are_two_seconds_apart(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    with ProgressLine(100, 0, "train") as line:
        for step in range(1, 51):
            now[0] += 0.5
            line.update(step, {})
    lines = capsys.readouterr().out.splitlines()
    assert [int(text.split()[1].split("/")[0]) for text in lines] == [*range(1, 50, 4), 50]
    assert lines[-1] == "train 50/100 · 25 s left"


def test_numbers():
    assert [number(v) for v in (0.0, 31.04, -1.24, 12345.6, 2e-5, float("inf"), None)] == [
        *("0", "31.0", "−1.24", "12,346", "2.00e-05", "not finite", "not finite")
    ]
    assert [duration(s) for s in (12, 125, 3725)] == ["12 s", "2:05 min", "1:02:05 h"]
