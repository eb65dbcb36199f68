"""Commands that depend on each other, each a process of its own: those that wait for nothing run side by side."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue

from rich.table import Table

from dipp_ray.errors import RoleFailure, UserError

Say = Callable[[str], None]
SENTENCE = "dipp-ray: "  # how a command's last word to a person begins
END_S = 60.0  # the longest wait for a process that was asked to end
READ_S = 5.0  # the longest wait for the rest of what an ended process printed


@dataclass(frozen=True)
class Stage:
    """A command, and the names of those whose work it needs."""

    name: str
    after: tuple[str, ...]
    command: tuple[str, ...]


@dataclass(frozen=True)
class Ran:
    """When a stage began and ended, in seconds since the first one began."""

    stage: Stage
    began: float
    ended: float


def run_stages(stages: Sequence[Stage], say: Say, meanwhile: Callable[[], None] = lambda: None) -> list[Ran]:
    """Run each as soon as those that it comes after have ended well; returns them in the order in which they ended.

    Their lines are said as they come, with the stage's name before them. meanwhile: called once the first ones run;
    what it puts into the environment is given to those after. Where one fails, the others are asked to end, and its
    own last sentence is raised: UserError where its exit status is 2, RoleFailure otherwise. Ctrl-C and SIGTERM ask
    all to end, and raise KeyboardInterrupt; a second one ends them at once.
    """
    lines: SimpleQueue[tuple[str, str | None]] = SimpleQueue()
    running: dict[str, subprocess.Popen] = {}
    began: dict[str, float] = {}
    last: dict[str, str] = {}
    ran: dict[str, Ran] = {}
    start = time.monotonic()

    def launch() -> None:
        for stage in stages:
            if stage.name not in began and all(name in ran for name in stage.after):
                began[stage.name] = time.monotonic() - start
                running[stage.name] = _start(stage, lines)

    with _signals_as_interrupt():
        try:
            launch()
            meanwhile()
            while running:
                name, line = lines.get()
                if line is not None:
                    last[name] = line
                    if not line.startswith(SENTENCE):
                        say(f"{name:>8} | {line}")
                    continue
                status = running.pop(name).returncode
                if status != 0:
                    raise _failure(name, status, last.get(name, ""))
                stage = next(stage for stage in stages if stage.name == name)
                ran[name] = Ran(stage, began[name], time.monotonic() - start)
                launch()
        except BaseException:
            _end(running, say)
            raise
    return list(ran.values())


def _start(stage: Stage, lines: SimpleQueue) -> subprocess.Popen:
    """Its process, in a session of its own: a terminal's Ctrl-C comes to this one alone, which passes it on."""
    process = subprocess.Popen(
        stage.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put((stage.name, line.rstrip("\n")))

    def watch() -> None:
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        process.wait()
        reader.join(READ_S)  # what it started itself may hold the pipe for longer
        lines.put((stage.name, None))

    threading.Thread(target=watch, daemon=True).start()
    return process


def _failure(name: str, status: int, last: str) -> BaseException:
    """What a stage that ended with `status` is raised as; last: the last line that it printed."""
    if status == 130:  # somebody interrupted it alone
        return KeyboardInterrupt()
    sentence = last.removeprefix(SENTENCE)
    if status == 2 and last != sentence:
        return UserError(sentence)
    if last != sentence:
        return RoleFailure(f"{name}: {sentence}")
    ended = f"exit status {status}" if status > 0 else signal.Signals(-status).name
    return RoleFailure(
        f"{name} ended with {ended}" + (f" ({last})" if last else "") + "; the same command goes on from what is whole"
    )


def _end(running: dict[str, subprocess.Popen], say: Say) -> None:
    """Ask them to end as by Ctrl-C; after a while, or at another Ctrl-C, end them and what they started."""
    if not running:
        return
    try:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        say(f"ending {' and '.join(running)}; Ctrl-C ends {'them' if len(running) > 1 else 'it'} at once")
        deadline = time.monotonic() + END_S
        for process in running.values():
            process.wait(max(0.0, deadline - time.monotonic()))
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        pass
    finally:
        for process in running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _signals_as_interrupt():
    """Within, SIGTERM and Ctrl-C raise KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    # SIGINT too: a shell's background job is started with it ignored, and so would its stages be.
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def waited_for(ran: Ran, among: Sequence[Ran]) -> Ran | None:
    """That of the stages before it which ended last, so that it could not begin earlier; None for a first one."""
    before = [one for one in among if one.stage.name in ran.stage.after]
    return max(before, key=lambda one: one.ended, default=None)


def critical_path(among: Sequence[Ran]) -> list[Ran]:
    """The stages, in their order, of which each waited for the one before, up to the last that ended."""
    path = [max(among, key=lambda one: one.ended)]
    while (before := waited_for(path[0], among)) is not None:
        path.insert(0, before)
    return path


def times_table(among: Sequence[Ran]) -> Table:
    """A row a stage: when it ran and what it waited for; the title is the critical path."""
    path = critical_path(among)
    way = ", ".join(f"{one.stage.name} {one.ended - one.began:.0f} s" for one in path)
    table = Table("stage", title=f"{path[-1].ended:.0f} s; the critical path: {way}")
    for heading in ("from [s]", "to [s]", "took [s]"):
        table.add_column(heading.replace("[", r"\["), justify="right")
    table.add_column("waited for")
    for one in sorted(among, key=lambda one: (one.began, one.stage.name)):
        before = waited_for(one, among)
        numbers = (f"{value:.0f}" for value in (one.began, one.ended, one.ended - one.began))
        table.add_row(one.stage.name, *numbers, before.stage.name if before else "")
    return table


def own_command(module: str, *arguments: str) -> tuple[str, ...]:
    """`python -m module` by this Python. -P: the files of the current folder are no modules of it."""
    return (sys.executable, "-P", "-m", module, *arguments)
