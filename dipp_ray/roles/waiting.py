"""Waiting on Ray references: visible after two seconds, bounded always, the first failure raised at once."""

import time
from collections.abc import Callable, Sequence

import ray

SAY_EVERY_S = 10.0


class RoleTimeout(RuntimeError):
    """A role did not answer in its time. The message says which and how long."""


def wait_all(references: Sequence, what: str, timeout_s: float, say: Callable[[str], None]) -> list:
    """The values of small results, in order. Raises what a task raised, or RoleTimeout after `timeout_s` seconds."""
    start, pending, said = time.monotonic(), list(references), 0.0
    while pending:
        done, pending = ray.wait(pending, num_returns=1, timeout=min(2.0, timeout_s))
        for reference in done:
            ray.get(reference)  # raises at once what it raised, whatever the others still do
        waited = time.monotonic() - start
        if pending and waited > timeout_s:
            raise RoleTimeout(f"{what}: {len(pending)} of {len(references)} did not answer within {timeout_s:g} s")
        if pending and waited - said >= (SAY_EVERY_S if said else 2.0):
            said = waited
            say(f"waiting for {what}: {len(references) - len(pending)} of {len(references)}, {waited:.0f} s so far")
    return [ray.get(reference) for reference in references]
