"""A call to a deployment by its Serve handle: deadline, failover between replicas, and which fault is whose."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import (
    ActorUnschedulableError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)

from dipp_ray.errors import CallError
from dipp_ray.serving.contract.failures import DeadlineError, ModelError, NoGradientError, first_line

ATTEMPTS = 3  # of one batch: what kills a replica each time is not tried for ever
PAUSE_S = 0.2
LOST = (
    RayActorError,
    ActorUnschedulableError,
    OutOfMemoryError,
    ObjectLostError,
    BackPressureError,
    ReplicaUnavailableError,
)


async def attempted(name: str, send: Callable[[float], Any], expires_s: float, kind: type[ModelError]) -> Any:
    """What the response of `send(seconds left)` brings. A lost replica's work is given to another one, for they keep no
    state.

    Raises `kind` of the deployment's `name` where it gives no answer, TimeoutError past `expires_s` seconds.
    """
    until, attempts = time.monotonic() + expires_s, 0
    while True:
        attempts += 1
        left = until - time.monotonic()
        response: Any = send(left)
        try:
            async with asyncio.timeout(max(left, 0)):
                return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except DeploymentUnavailableError as error:
            raise kind(name, f"its deployment failed ({first_line(error)})", "lost") from error
        except LOST as error:
            lost = error
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, DeadlineError):
                raise TimeoutError from None
            if isinstance(cause, NoGradientError):
                raise kind(name, cause.reason, "refused", cause.place) from error
            if not isinstance(cause, LOST):
                refused = isinstance(cause, CallError)
                reason = first_line(cause) if refused else f"{type(cause).__name__}: {first_line(cause)}"
                raise kind(name, reason, "refused" if refused else "failed") from error
            lost = cause
        except TimeoutError:  # ours: one that a model raises is a RayTaskError too
            response.cancel()
            raise
        except (RayError, RayServeException) as error:
            raise kind(name, f"{type(error).__name__}: {first_line(error)}", "failed") from error
        if attempts >= ATTEMPTS:
            raise kind(name, f"lost {attempts} replicas in a row ({type(lost).__name__})", "lost")
        await asyncio.sleep(PAUSE_S)
