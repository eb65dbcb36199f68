"""The models by their Serve handles: deadlines, failover between replicas, and which fault is whose."""

import asyncio
import time

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
from dipp_ray.rewards.combination import Answer, trained
from dipp_ray.rewards.terms import SumTerm
from dipp_ray.serving.contract.calls import HEALTH_S
from dipp_ray.serving.contract.failures import DeadlineError, ModelError, first_line
from dipp_ray.serving.core.scheduler import Call

ATTEMPTS = 3  # of one batch: what kills a replica each time is not tried for ever
PAUSE_S = 0.2
AWAY = 5.0  # so many waits long, a model that is not required is left alone after it gave no answer
LOST = (
    RayActorError,
    ActorUnschedulableError,
    OutOfMemoryError,
    ObjectLostError,
    BackPressureError,
    ReplicaUnavailableError,
)


class ModelHandles:
    """handles: a Serve handle to each reward model, by its name. optional_wait_s: longest wait for one that is not
    required."""

    def __init__(self, handles: dict, optional_wait_s: float):
        self._handles, self._optional_wait_s = handles, optional_wait_s
        self._away: dict[str, float] = {}  # until when a model is left alone

    @property
    def names(self) -> list[str]:
        return list(self._handles)

    async def ask(self, term: SumTerm, call: Call, expires_s: float) -> Answer:
        """One model's answer. A lost replica's work is given to another one: models keep no state."""
        optional = not term.required
        if optional:
            expires_s = min(self._optional_wait_s, expires_s / 2)  # so that there is time to answer without it
            others = any(other.name != term.name for other in trained(call.terms))
            if others and time.monotonic() < self._away.get(term.name, 0.0):  # they would wait for it batch after batch
                raise ModelError(term.name, "it gave no answer lately", "lost")
        until, attempts = time.monotonic() + expires_s, 0
        gradient = call.gradient and not term.held_out
        while True:
            attempts += 1
            left = until - time.monotonic()
            response = self._handles[term.name].answer.remote(call.x, call.prompts, call.space, gradient, left)
            try:
                async with asyncio.timeout(max(left, 0)):
                    answer = await response
                self._away.pop(term.name, None)
                return answer
            except asyncio.CancelledError:
                response.cancel()
                raise
            except DeploymentUnavailableError as error:
                raise ModelError(term.name, f"its deployment failed ({first_line(error)})", "lost") from error
            except LOST as error:
                lost = error
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, DeadlineError):
                    raise self._late(term, optional, expires_s) from None
                if not isinstance(cause, LOST):
                    refused = isinstance(cause, CallError)
                    reason = first_line(cause) if refused else f"{type(cause).__name__}: {first_line(cause)}"
                    raise ModelError(term.name, reason, "refused" if refused else "failed") from error
                lost = cause
            except TimeoutError:  # ours: one that a model raises is a RayTaskError too
                response.cancel()
                raise self._late(term, optional, expires_s) from None
            except (RayError, RayServeException) as error:
                raise ModelError(term.name, f"{type(error).__name__}: {first_line(error)}", "failed") from error
            if attempts >= ATTEMPTS:
                raise ModelError(term.name, f"lost {attempts} replicas in a row ({type(lost).__name__})", "lost")
            await asyncio.sleep(PAUSE_S)

    def _late(self, term: SumTerm, optional: bool, waited_s: float) -> Exception:
        if not optional:
            return DeadlineError(f"reward '{term.name}' did not answer in time")
        self._away[term.name] = time.monotonic() + AWAY * waited_s
        return ModelError(term.name, f"no answer within {waited_s:.3g} s", "lost")

    async def health_of(self, name: str) -> str:
        response = self._handles[name].check_health.remote()
        try:
            async with asyncio.timeout(HEALTH_S):
                await response
        except (RayError, RayServeException) as error:
            return type(error.cause if isinstance(error, RayTaskError) else error).__name__  # open to all: no more
        except TimeoutError:
            response.cancel()
            return f"no answer within {HEALTH_S:g} s"
        return "ok"
