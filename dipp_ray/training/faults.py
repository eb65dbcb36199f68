"""What is said when a rank is lost, silent or late: one sentence that names it, its work, and what to do."""

import re
import traceback
from pathlib import Path

from ray.exceptions import RayTaskError

from dipp_ray.diffusion.noise import BARRIER
from dipp_ray.errors import RoleFailure
from dipp_ray.roles.waiting import GOES_ON
from dipp_ray.training.tasks import Role, Task

# What is said where memory runs out, on a GPU or on a node.
MORE_MEMORY = (
    "more data.micro_batches, gradient_checkpointing or offload of the role take less, `dipp-ray check` says how much"
)
LONGEST = 300  # characters of an error that nobody foresaw


class ActorLost(Exception):
    """The process of an actor is gone. `role` is None where it is none of the executor's."""

    def __init__(self, role: Role | None, index: int, reason: str):
        super().__init__(reason)
        self.role, self.index, self.reason = role, index, reason


def died(role: Role, index: int, running: Task | None, reason: str) -> RoleFailure:
    """`running`: the task that it was at, or None."""
    during = f" in {work_of(running)}" if running else " while it had nothing to do"
    return RoleFailure(f"{named(role, index)} died{during}: {reason}; {GOES_ON}")


def stranger_died(role: Role, index: int, running: Task | None, reason: str) -> RoleFailure:
    """Of a process that is none of the run's ranks and pools."""
    during = f" in {work_of(running)}" if running else ""
    return RoleFailure(f"a process that {named(role, index)} depends on died{during}: {reason}; {GOES_ON}")


def broke_off(role: Role, index: int, running: Task, error: BaseException) -> RoleFailure:
    """Of work that ended as it does where a process is lost (a broken collective, a lost argument), and none is."""
    return RoleFailure(
        f"{named(role, index)} broke off {work_of(running)}, though no process is lost: {said_by(error)}; {GOES_ON}"
    )


def silent(role: Role, index: int, running: Task | None) -> RoleFailure:
    during = f", in {work_of(running)}" if running else ""
    return RoleFailure(
        f"{named(role, index)} does not respond{during}: its process hangs, or its machine does; {GOES_ON}"
    )


def overdue(role: Role, index: int, running: Task, timeout_s: float) -> RoleFailure:
    return RoleFailure(
        f"{named(role, index)} did not end {work_of(running)} within {timeout_s:g} s (roles.step_timeout_s): raise "
        f"that, or look at its log; {GOES_ON}"
    )


def broke(error: Exception, cause: BaseException, log: Path) -> RoleFailure:
    """Of an error that nobody foresaw: a person is told what it was and who met it; Ray's account of it and the
    traceback go into the file `log`."""
    by = "a role" if isinstance(error, RayTaskError) else "the driver"
    where = "; ".join(getattr(error, "__notes__", [])) or f"raised by {by}"
    if type(cause).__name__ == "OutOfMemoryError":  # torch's
        where += f"; {MORE_MEMORY}"
    try:
        log.write_text(plain("".join(traceback.format_exception(error))), encoding="utf-8")
        where += f"; its traceback is in {log}"
    except OSError:  # the run's folder is gone, or full
        pass
    return RoleFailure(f"{type(cause).__name__}: {said_by(cause)} ({where}); {GOES_ON}")


def resumable(error: Exception, step: int | None) -> Exception:
    """The same error of a run that had begun, whose sentence says how it goes on; step: its newest checkpoint's."""
    if GOES_ON in str(error):
        return error
    how = (
        f"the same command goes on from step {step}" if step else "nothing is saved yet: the same command begins again"
    )
    sentence, line_end, table = str(error).partition("\n")  # of one that shows what the cluster has
    return type(error)(f"{sentence}; {how}{line_end}{table}")


def said_by(error: BaseException) -> str:
    """What an error says, for a sentence; of one that a role raised, what its cause says."""
    cause = getattr(error, "cause", None) or error
    return (plain(str(cause)).strip().splitlines() or ["without a word"])[0][:LONGEST]


def plain(text: str) -> str:
    """Without the colours of a terminal and the addresses of objects."""
    return re.sub(r" at 0x[0-9a-f]+", "", re.sub(r"\x1b\[[0-9;]*m", "", text))


def named(role: Role, index: int) -> str:
    """Who it is, as a person reads it."""
    names = {
        "generator": f"generator rank {index}",
        "score": f"score model rank {index}",
        "teacher": f"teacher {index}",
        "text": "text encoder",
        "reward": "reward client",
    }
    return names[role]


def work_of(task: Task) -> str:
    """What it is, as a person reads it."""
    key = task.key
    if key.step == BARRIER:
        return f"'{key.action}'"
    if key.step < 0:
        return f"'{key.action}' {key.repeat}, micro-batch {key.micro_batch}"
    return f"step {key.step}, '{key.action}' of micro-batch {key.micro_batch}"
