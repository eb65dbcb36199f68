import os
import signal
import sys
import time

import pytest

from dipp_ray.errors import RoleFailure, UserError
from dipp_ray.miniature import side_by_side
from dipp_ray.miniature.side_by_side import Ran, Stage, critical_path, run_stages, times_table, waited_for

# Sleeps, and says with the file `ended` that it was asked to end, as a run does at Ctrl-C.
SLEEPER = """
import pathlib, time
try:
    print("sleeping")
    time.sleep(600)
except KeyboardInterrupt:
    pathlib.Path("ended").touch()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stage(name: str, code: str, *after: str) -> Stage:
    return Stage(name, after, (sys.executable, "-c", code))


def silent(line: str) -> None:
    pass


def awaits(path: str) -> str:
    return f"import pathlib, time\nwhile not pathlib.Path({path!r}).exists(): time.sleep(0.01)\n"


def touches(path: str) -> str:
    return f"import pathlib; pathlib.Path({path!r}).touch()\n"


def test_those_that_wait_for_nothing_run_side_by_side_and_the_others_after_what_they_need():
    needs = "import pathlib\nassert pathlib.Path('a').exists() and pathlib.Path('b').exists()\n"
    ran = run_stages(
        [
            stage("last", needs + touches("last"), "one", "two"),
            stage("one", touches("a") + awaits("b")),  # each ends only if the other runs too
            stage("two", touches("b") + awaits("a")),
        ],
        silent,
    )
    assert {one.stage.name for one in ran[:2]} == {"one", "two"} and ran[2].stage.name == "last"
    assert ran[2].began >= max(one.ended for one in ran[:2])
    assert all(one.began <= one.ended for one in ran)


def test_lines_carry_the_name_of_their_stage():
    lines = []
    run_stages([stage("fit", "import sys; print('a ü'); print('b', file=sys.stderr)")], lines.append)
    assert lines == ["     fit | a ü", "     fit | b"]


def test_what_is_done_meanwhile_reaches_the_environment_of_those_after(monkeypatch):
    monkeypatch.delenv("OF_THE_DEMO", raising=False)
    code = "import os; print(os.environ.get('OF_THE_DEMO'))"
    lines = []
    run_stages(
        [stage("first", code), stage("second", code, "first")],
        lines.append,
        lambda: monkeypatch.setenv("OF_THE_DEMO", "here"),
    )
    assert lines == ["   first | None", "  second | here"]


@pytest.mark.parametrize(("status", "raised", "told"), [(2, UserError, "no room"), (1, RoleFailure, "bad: no room")])
def test_one_that_fails_ends_the_others_and_is_told_in_its_own_sentence(folder, status, raised, told):
    bad = awaits("up") + f"import sys; print('dipp-ray: no room', file=sys.stderr); sys.exit({status})"
    lines = []
    with pytest.raises(raised) as error:
        run_stages(
            [
                stage("slow", SLEEPER.replace("print", touches("up") + "    print")),
                stage("bad", bad),
                stage("never", touches("never"), "bad"),
            ],
            lines.append,
        )
    assert str(error.value) == told
    assert (folder / "ended").exists() and not (folder / "never").exists()
    assert not any("no room" in line for line in lines)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ValueError('odd')", "bad ended with exit status 1 (ValueError: odd)"),
        ("import os; os.kill(os.getpid(), 9)", "bad ended with SIGKILL"),
    ],
)
def test_one_that_breaks_without_a_sentence_is_named(code, told):
    with pytest.raises(RoleFailure) as error:
        run_stages([stage("bad", code)], silent)
    assert str(error.value).startswith(told)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_and_lets_them_end_well(folder, number):
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    def say(line: str) -> None:
        if line.endswith("sleeping"):
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        run_stages([stage("slow", SLEEPER)], say)
    assert (folder / "ended").exists()
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_one_that_does_not_end_is_ended_with_what_it_started(folder, monkeypatch):
    monkeypatch.setattr(side_by_side, "END_S", 0.2)
    code = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("pids").write_text(f"{os.getpid()} {child.pid}")
print("deaf")
time.sleep(600)
"""

    def say(line: str) -> None:
        if line.endswith("deaf"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages([stage("deaf", code)], say)
    for pid in map(int, (folder / "pids").read_text().split()):
        while is_alive(pid):
            time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that is dead and waits for its parent's parent to see it does not."""
    try:
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_pipe_that_a_child_of_a_stage_holds_open_keeps_nobody_waiting(folder, monkeypatch):
    monkeypatch.setattr(side_by_side, "READ_S", 0.2)
    code = """
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
pathlib.Path("pid").write_text(str(child.pid))
"""
    try:
        run_stages([stage("parent", code)], silent)
    finally:
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)


def test_the_critical_path_is_of_those_that_were_waited_for():
    teacher, gold = Ran(stage("teacher", ""), 0, 100), Ran(stage("gold", ""), 0, 10)
    reward = Ran(stage("reward", "", "teacher", "gold"), 100, 180)
    distil = Ran(stage("distil", "", "teacher", "gold"), 100, 250)
    align = Ran(stage("align", "", "reward", "distil"), 250, 300)
    ran = [gold, teacher, reward, distil, align]
    assert waited_for(align, ran) is distil and waited_for(reward, ran) is teacher and waited_for(gold, ran) is None
    assert critical_path(ran) == [teacher, distil, align]
    table = times_table(ran)
    assert table.title == "300 s; the critical path: teacher 100 s, distil 150 s, align 50 s"
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["gold", "teacher", "distil", "reward", "align"]
    assert columns[3] == ["10", "100", "150", "80", "50"] and columns[4] == ["", "", "teacher", "teacher", "distil"]
