"""Waiting on Ray references: visible after two seconds, bounded always, the first failure raised at once."""

from collections.abc import Callable, Sequence

import ray
from ray.exceptions import RayActorError, RayTaskError

from dipp_ray.errors import CallError, NonFiniteError, RewardUnavailableError, RoleFailure, UserError
from dipp_ray.reporting.pace import Pace

SAY_EVERY_S = 10.0


def value_of(reference, what: str):
    """The value of a small result. What a role says to a person comes without Ray's account of where it was said."""
    try:
        return ray.get(reference)
    except RayActorError as error:
        lines = str(error).strip().splitlines()
        reason = lines[-1].strip() if "creation task" in lines[0] else lines[0]  # what its constructor raised
        raise RoleFailure(
            f"{what}: a process died ({reason}); the same command goes on from the last checkpoint"
        ) from None
    except RayTaskError as error:
        if isinstance(error.cause, (UserError, CallError, NonFiniteError, RewardUnavailableError)):
            raise error.cause from None
        raise


def wait_all(references: Sequence, what: str, timeout_s: float, say: Callable[[str], None]) -> list:
    """The values of small results, in order. Raises what a task raised, or RoleFailure after `timeout_s` seconds."""
    pending, pace = list(references), Pace(SAY_EVERY_S, first_s=2.0)
    while pending:
        done, pending = ray.wait(pending, num_returns=1, timeout=min(2.0, timeout_s))
        for reference in done:
            value_of(reference, what)  # raises at once what it raised, whatever the others still do
        if pending and pace.elapsed > timeout_s:
            raise RoleFailure(f"{what}: {len(pending)} of {len(references)} did not answer within {timeout_s:g} s")
        if pending and pace.due():
            done = len(references) - len(pending)
            say(f"waiting for {what}: {done} of {len(references)}, {pace.elapsed:.0f} s so far")
    return [value_of(reference, what) for reference in references]
