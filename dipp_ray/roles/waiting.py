"""Waiting on Ray references: visible after two seconds, bounded always, the first failure raised at once."""

import re
from collections.abc import Callable, Sequence

import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayTaskError

from dipp_ray.errors import TOLD, RoleFailure
from dipp_ray.reporting.pace import Pace

SAY_EVERY_S = 10.0
GOES_ON = "the same command goes on from the last checkpoint"
UNREACHABLE = "it cannot be reached: its node is lost, or the network to it"
LOW_ON_MEMORY = "its node ran low on memory"


def value_of(reference):
    """The value of a small result. What a role says to a person comes without Ray's account of where it was said.

    Raises RayActorError where a process died, be it that of the task or of one that held its argument.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, TOLD):
            raise error.cause from None
        if isinstance(error.cause, RayActorError):
            raise error.cause from None
        raise


def lost_actor(error: RayActorError) -> tuple[str, str]:
    """(id of the actor in hex, why it died) of an error of Ray, the latter as half a sentence for a person."""
    text = " ".join(str(error).split())
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if isinstance(error, ActorUnavailableError):  # before Ray knows why
        reason = UNREACHABLE
    elif error.actor_init_failed:
        reason = lines[-1]  # what its constructor raised
    elif "node has died" in text or "node was terminated" in text:
        reason = "its node was lost"
    elif "memory" in text and "OOM" not in text:
        reason = LOW_ON_MEMORY
    elif "connection error code" in text or "SIGKILL" in text:
        reason = "its process was killed, from outside or by the system for want of memory"
    else:
        found = re.search(r"is dead because (.+?)(?:\. |\.?$)", text)
        reason = found[1] if found else lines[0].rstrip(".")
    return error.actor_id or "", reason


BROKEN = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
    "DistBackendError",
    "DistNetworkError",
)


def is_consequence(error: Exception) -> bool:
    """Whether a call ended so because of what happened to another process: a collective broke, an argument was lost."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ObjectLostError):
        return True
    return any(word in f"{type(cause).__name__}: {cause}" for word in BROKEN)


def wait_all(
    references: Sequence, what: str, timeout_s: float, say: Callable[[str], None], goes_on: str = GOES_ON
) -> list:
    """The values of small results, in order. Raises what a task raised, or RoleFailure where a process died or after
    `timeout_s` seconds, which says `goes_on`."""
    pending, pace = list(references), Pace(SAY_EVERY_S, first_s=2.0)
    while pending:
        done, pending = ray.wait(pending, num_returns=1, timeout=min(2.0, timeout_s))
        for reference in done:
            _value(reference, what, goes_on)  # raises at once what it raised, whatever the others still do
        if pending and pace.elapsed > timeout_s:
            late = f"{len(pending)} of {len(references)} did not answer within {timeout_s:g} s"
            raise RoleFailure(f"{what}: {late}; {goes_on}")
        if pending and pace.due():
            done = len(references) - len(pending)
            say(f"waiting for {what}: {done} of {len(references)}, {pace.elapsed:.0f} s so far")
    return [_value(reference, what, goes_on) for reference in references]


def _value(reference, what: str, goes_on: str):
    try:
        return value_of(reference)
    except RayActorError as error:
        _, reason = lost_actor(error)
        raise RoleFailure(f"{what}: a process died ({reason}); {goes_on}") from None
