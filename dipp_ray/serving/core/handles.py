"""The models by their Serve handles, and the decoders in front of them: who is waited for, and for how long."""

import asyncio
import time
from collections.abc import Mapping

import numpy as np
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from dipp_ray.rewards.combination import Answer, trained
from dipp_ray.rewards.terms import SumTerm
from dipp_ray.serving.contract.calls import HEALTH_S
from dipp_ray.serving.contract.failures import DeadlineError, DecoderError, ModelError
from dipp_ray.serving.core.attempts import attempted
from dipp_ray.serving.core.work import Call

AWAY = 5.0  # so many waits long, a model that is not required is left alone after it gave no answer


class ModelHandles:
    """handles: a Serve handle to each reward model, by its name. optional_wait_s: longest wait for one that is not
    required."""

    def __init__(self, handles: Mapping, optional_wait_s: float):
        self._handles, self._optional_wait_s = handles, optional_wait_s
        self._away: dict[str, float] = {}  # until when a model is left alone

    async def ask(self, term: SumTerm, call: Call, expires_s: float) -> Answer:
        """One model's answer. Raises ModelError, and DeadlineError where a required one is late."""
        name, optional = term.name, not term.required
        if optional:
            expires_s = min(self._optional_wait_s, expires_s / 2)  # so that there is time to answer without it
            others = any(other.name != name for other in trained(call.terms))
            if others and time.monotonic() < self._away.get(name, 0.0):  # they would wait for it batch after batch
                raise ModelError(name, "it gave no answer lately", "lost")
        gradient = call.gradient and not term.held_out

        def send(left: float):
            return self._handles[name].answer.remote(call.x, call.prompts, call.space, gradient, left)

        try:
            answer = await attempted(name, send, expires_s, ModelError)
        except TimeoutError:
            if not optional:
                raise DeadlineError(f"reward '{name}' did not answer in time") from None
            self._away[name] = time.monotonic() + AWAY * expires_s
            raise ModelError(name, f"no answer within {expires_s:.3g} s", "lost") from None
        self._away.pop(name, None)
        return answer


class DecoderHandles:
    """handles: a Serve handle to each decoder, by its VAE's name."""

    def __init__(self, handles: Mapping):
        self._handles = handles

    async def decode(self, call: Call, expires_s: float) -> np.ndarray:
        """The images [B, 3, H, W] of a call's latents. Raises DecoderError or DeadlineError."""
        return await self._asked(call, "decode", (call.x, call.gradient), expires_s)

    async def pull_back(self, call: Call, slopes: np.ndarray, expires_s: float) -> np.ndarray:
        """From derivatives [B, 3, H, W] by the images to those by the call's latents. Raises as `decode`."""
        return await self._asked(call, "pull_back", (call.x, slopes), expires_s)

    async def _asked(self, call: Call, method: str, arguments: tuple, expires_s: float) -> np.ndarray:
        name = call.vae
        assert name is not None, "a call without a VAE is not decoded here"

        def send(left: float):
            return getattr(self._handles[name], method).remote(*arguments, left)

        try:
            return await attempted(name, send, expires_s, DecoderError)
        except TimeoutError:
            raise DeadlineError(f"VAE '{name}' did not decode in time") from None


async def health_of(handle) -> str:
    """`ok`, or in few words what is wrong with a deployment."""
    response = handle.check_health.remote()
    try:
        async with asyncio.timeout(HEALTH_S):
            await response
    except (RayError, RayServeException) as error:
        return type(error.cause if isinstance(error, RayTaskError) else error).__name__  # open to all: no more
    except TimeoutError:
        response.cancel()
        return f"no answer within {HEALTH_S:g} s"
    return "ok"
