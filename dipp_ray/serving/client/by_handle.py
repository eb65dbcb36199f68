"""The way to a reward service by Serve handle, inside the cluster."""

import asyncio

import numpy as np
from pydantic import ValidationError

from dipp_ray.errors import UserError
from dipp_ray.serving.client.transport import TransportError, another_version, as_client_error, ills
from dipp_ray.serving.contract.calls import Question, as_fp32
from dipp_ray.serving.contract.records import ServiceRecord


class HandleTransport:
    """Calls by a Serve handle, inside the cluster."""

    def __init__(self, application: str):
        self._application, self._handle = application, None

    async def score(
        self, x: np.ndarray, prompts: list[str], question: Question, trainer: str, expires_s: float
    ) -> dict:
        return await self._call("score", as_fp32(x), prompts, question, trainer, expires_s)

    async def describe(self) -> ServiceRecord:
        try:
            return ServiceRecord.model_validate(await self._call("models"))
        except ValidationError as error:
            raise another_version(self._application, error, "reward.app") from None

    async def require_health(self) -> None:
        health = await self._call("health")
        if not health.ok:
            raise TransportError(ills(health))

    async def close(self) -> None:
        pass

    async def _call(self, method: str, *arguments):
        from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError  # by URL it goes without Ray
        from ray.serve.exceptions import (
            BackPressureError,
            DeploymentUnavailableError,
            RayServeException,
            ReplicaUnavailableError,
        )

        lost = (RayActorError, ObjectLostError, BackPressureError, ReplicaUnavailableError, DeploymentUnavailableError)
        response = None
        try:
            response = getattr(self._found(), method).remote(*arguments)
            return await response
        except asyncio.CancelledError:
            if response is not None:
                response.cancel()  # work past its deadline is not begun
            raise
        except lost as error:
            raise TransportError(f"{type(error).__name__}: {error}") from error
        except RayTaskError as error:
            if isinstance(error.cause, lost):
                raise TransportError(f"{type(error.cause).__name__}: {error.cause}") from error
            known = as_client_error(error.cause)
            if known is None:
                raise
            raise known from error
        except (RayError, RayServeException) as error:
            raise TransportError(f"{type(error).__name__}: {error}") from error

    def _found(self):
        """The handle. Raises UserError where there is no such application."""
        if self._handle is None:
            from ray import serve
            from ray.serve.exceptions import RayServeException

            try:
                self._handle = serve.get_app_handle(self._application)
            except RayServeException:
                raise UserError(
                    f"reward.app: no application '{self._application}' runs in this cluster: see `serve status`"
                ) from None
        return self._handle
