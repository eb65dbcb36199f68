"""The reward client of a trainer: one deadline a call, retries for transport faults, no failure read as a number."""

import asyncio
import random
import time
from typing import Literal, Protocol

import numpy as np
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError

from dipp_ray.errors import NonFiniteError, RewardUnavailableError

Space = Literal["latents", "images"]  # As in scoring.py, whose import would bring torch into the client's process.
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


class TransportError(Exception):
    """The call did not reach a model, or its answer got lost: the same call may succeed elsewhere."""


class Transport(Protocol):
    """How one attempt travels. Raises TransportError for what a retry may cure."""

    async def __call__(self, x: np.ndarray, prompts: list[str], space: Space, gradient: bool) -> dict: ...


class HandleTransport:
    """Calls by a Serve handle, inside the cluster."""

    def __init__(self, application: str):
        self._handle = serve.get_app_handle(application)

    async def __call__(self, x: np.ndarray, prompts: list[str], space: Space, gradient: bool) -> dict:
        response = None
        try:
            response = self._handle.score.remote(x, prompts, space, gradient)
            return await response
        except asyncio.CancelledError:
            if response is not None:
                response.cancel()  # work past its deadline is not begun
            raise
        except (RayActorError, ObjectLostError, BackPressureError, ReplicaUnavailableError) as error:
            raise TransportError(f"{type(error).__name__}: {error}") from error
        except RayTaskError as error:
            if isinstance(error.cause, (RayActorError, ObjectLostError)):
                raise TransportError(f"{type(error.cause).__name__}: {error.cause}") from error
            raise


class RewardClient:
    """Scores and gradients from a reward service.

    deadline_s: longest wait for one answer in seconds, retries included. on_nonfinite: `raise` refuses an answer with
    a NaN or an infinity in it; `drop` returns it with the mask `finite`, for the generator to drop those terms.
    """

    def __init__(
        self,
        transport: Transport,
        deadline_s: float,
        on_nonfinite: Literal["raise", "drop"] = "raise",
        space: Space = "latents",
    ):
        self._transport = transport
        self._deadline_s = deadline_s
        self._on_nonfinite = on_nonfinite
        self._space = space

    async def score(self, x: np.ndarray, prompts: list[str], gradient: bool = True) -> dict:
        """x [B, C, h, w] float32 (latents in the model's scale, or images in [0, 1]) and B prompts -> dict of arrays.

        reward [B]; scores {name: [B]}, raw and held-out ones too; gradient [B, C, h, w], the derivative of each row's
        reward by that row, or None; finite [B], where reward and gradient are finite.
        Raises RewardUnavailableError past the deadline, NonFiniteError by policy, and what the model itself raised.
        """
        reply = await self._retried(x, prompts, gradient)
        finite = np.isfinite(reply["reward"])
        if gradient:
            finite &= np.isfinite(reply["gradient"]).reshape(len(x), -1).all(axis=1)
        if self._on_nonfinite == "raise":
            _require_finite(reply)
        return {**reply, "finite": finite}

    async def _retried(self, x: np.ndarray, prompts: list[str], gradient: bool) -> dict:
        until = time.monotonic() + self._deadline_s
        pause, attempts, last = FIRST_PAUSE_S, 0, "no answer yet"
        while (left := until - time.monotonic()) > 0:
            attempts += 1
            try:
                async with asyncio.timeout(left):
                    return await self._transport(x, prompts, self._space, gradient)
            except TimeoutError:
                break
            except TransportError as error:
                last = str(error).splitlines()[0]
            # Jitter, so that the callers of a lost replica do not come back all at once.
            await asyncio.sleep(max(0.0, min(pause * random.uniform(0.5, 1.5), until - time.monotonic())))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        raise RewardUnavailableError(
            f"reward service: no answer for {len(x)} samples within {self._deadline_s:g} s and {attempts} attempts "
            f"({last}): see `serve status`, or raise reward.deadline_s"
        )


def _require_finite(reply: dict) -> None:
    named = {f"reward '{name}'": score for name, score in reply["scores"].items()}
    named["the weighted reward"] = reply["reward"]
    if reply["gradient"] is not None:
        named["the reward's gradient"] = reply["gradient"]
    for name, values in named.items():
        if bad := int((~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).sum()):
            raise NonFiniteError(f"{name} is not finite for {bad} of {len(values)} samples")
