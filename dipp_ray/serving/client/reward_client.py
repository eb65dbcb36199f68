"""The reward client: one deadline a call, retries for transport faults, no failure read as a number.

For a trainer's reward-client actor and for any other program; it needs neither torch nor, by URL, Ray:

    transport = HttpTransport(["http://127.0.0.1:8000"], token, "fp32", OF_CALLER)
    async with RewardClient(transport, 60, on_nonfinite="raise", space="images", trainer="me") as client:
        reply = await client.score(images, prompts, gradient=True)
"""

import asyncio
import random
import re
import time
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from dipp_ray.errors import CallError, NonFiniteError, RewardAwayError, RewardUnavailableError, UserError
from dipp_ray.serving.client.transport import Transport, TransportError
from dipp_ray.serving.client.vaes import require_vae
from dipp_ray.serving.contract.calls import Question, finite_rows
from dipp_ray.serving.contract.failures import first_line
from dipp_ray.serving.contract.records import TRAINER, ServiceRecord, Space, VaeRecord

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


class RewardClient:
    """Scores and gradients from a reward service.

    deadline_s: longest wait for one answer in seconds, retries included. on_nonfinite: `raise` refuses an answer with
    a NaN or an infinity in it; `drop` returns it with the mask `finite`, for the generator to drop those terms.
    space: what is sent. vae: which of the service's VAEs made the latents, by its name there; None for its only one.
    trainer: who calls, where no token says it.
    """

    def __init__(
        self,
        transport: Transport,
        deadline_s: float,
        *,
        on_nonfinite: Literal["raise", "drop"],
        space: Space,
        trainer: str,
        vae: str | None = None,
    ):
        if space not in get_args(Space):
            raise UserError(f"space '{space}': write {' or '.join(get_args(Space))}")
        if not re.match(TRAINER, trainer):
            raise UserError(f"trainer '{trainer}': write a letter or digit, then letters, digits, '_', '.' and '-'")
        self._transport = transport
        self._deadline_s = deadline_s
        self._on_nonfinite = on_nonfinite
        self._space, self._vae = space, vae
        self._trainer = trainer

    async def __aenter__(self) -> "RewardClient":
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()

    async def score(self, x: np.ndarray, prompts: list[str], gradient: bool, held_out: bool = True) -> dict:
        """x [B, C, h, w] (latents in the model's scale, images in [0, 1] or in uint8) and B prompts -> dict of arrays.

        reward [B]; scores {name: [B]}, raw, and with `held_out` those of models that are held out too; gradient
        [B, C, h, w], the derivative of each row's reward by that row, or None; finite [B], where reward and gradient
        are finite. held_out [name]: models that entered no sum. failed {name: reason}: models that are not required
        and gave no answer.
        Raises RewardUnavailableError past the deadline, NonFiniteError by policy, and CallError for a refused call.
        """
        x = np.asarray(x)
        require_rows(len(x), prompts, self._space)
        question = Question(self._space, gradient, held_out, self._vae)

        async def attempt(left: float) -> dict:
            return await self._transport.score(x, prompts, question, self._trainer, left)

        reply = await self._retried(attempt, f"{len(x)} samples")
        _require_complete(reply, x, gradient)
        finite = finite_rows(reply["reward"])
        if gradient:
            finite &= finite_rows(reply["gradient"])
        if self._on_nonfinite == "raise":
            _require_finite(reply)
        return {**reply, "finite": finite}

    async def describe(self) -> ServiceRecord:
        """What the service is: its models, their part in the sum, its limits. Raises RewardUnavailableError."""

        async def attempt(_: float) -> ServiceRecord:
            return await self._transport.describe()

        return await self._retried(attempt, "the question what it serves")

    async def check(
        self, names: list[str], held_out: list[str], rows: int, gradient: bool, own: VaeRecord | None = None
    ) -> ServiceRecord:
        """`describe`, after what a trainer needs was found there: models of these names, calls of `rows` rows, health.

        gradient: whether gradients will be asked for. own: what the trainer's latents are, as far as it knows. An ill
        service is waited for, as long as for an answer.

        Raises UserError where it is another service than was expected.
        """
        service = await self.describe()
        served = {model.name: model for model in service.models}
        missing = [name for name in names if name not in served]
        if missing:
            raise UserError(
                f"the reward service {service.name} serves {', '.join(served)}, but not {', '.join(missing)}: correct "
                "reward.terms, or call another service"
            )
        other = [name for name in names if served[name].held_out != (name in held_out)]
        if other:
            raise UserError(
                f"the reward service {service.name} and reward.terms do not agree whether {other[0]} is held out: "
                "correct the one or the other"
            )
        if gradient and (flat := [m.name for m in service.models if not m.held_out and not m.differentiable]):
            raise UserError(
                f"the reward service {service.name} has {flat[0]} in its sum, which has no gradient: hold it out there"
            )
        if self._space == "latents":
            require_vae(service, self._vae, own)
        if rows > service.limits.rows:
            raise UserError(
                f"the reward service {service.name} takes {service.limits.rows} rows a call, this run sends {rows}: "
                "raise its limits.rows, or data.micro_batches"
            )

        async def well(_: float) -> None:
            await self._transport.require_health()

        await self._retried(well, "the question whether it is well")
        return service

    async def _retried(self, attempt, what: str):
        until = time.monotonic() + self._deadline_s
        pause, attempts, faults, last = FIRST_PAUSE_S, 0, 0, "no answer yet"
        while (left := until - time.monotonic()) > 0:
            attempts += 1
            asked = 0.0
            try:
                async with asyncio.timeout(left):
                    return await attempt(left)
            except TimeoutError:
                break
            except TransportError as error:
                last, asked = first_line(error), error.retry_after_s
                faults += error.most_attempts is not None
                if error.most_attempts is not None and faults >= error.most_attempts:
                    raise RewardUnavailableError(
                        f"reward service: {faults} attempts at {what} failed: {last}"
                    ) from None
            # Jitter, so that the callers of a lost replica do not come back all at once.
            wait = max(pause, asked) * random.uniform(1.0, 1.5)
            await asyncio.sleep(max(0.0, min(wait, until - time.monotonic())))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        raise RewardAwayError(
            f"reward service: no answer for {what} within {self._deadline_s:g} s and {attempts} attempts "
            f"({last}): see `serve status` and the service's log, or wait longer (deadline_s, in a "
            "run's configuration reward.deadline_s)"
        )


def require_rows(rows: int, prompts: Sequence[str], space: Space) -> None:
    """Raise CallError unless there is a prompt for each of `rows` rows, of which there is one at least."""
    if isinstance(prompts, str):
        raise CallError("prompts is one text: give a list of them, one a row")
    if other := [type(prompt).__name__ for prompt in prompts if not isinstance(prompt, str)]:
        raise CallError(f"prompts holds a value of type {other[0]}: give texts, one a row")
    if not rows or rows != len(prompts):
        raise CallError(f"{rows} {space} but {len(prompts)} prompts: give one prompt a row, and a row at least")


def _require_complete(reply: dict, x: np.ndarray, gradient: bool) -> None:
    """Raise NonFiniteError where a value is missing: what was not answered is no number."""
    wanted = {"reward": (reply["reward"], x.shape[:1])}
    wanted |= {f"score {name}": (score, x.shape[:1]) for name, score in reply["scores"].items()}
    if gradient:
        wanted["gradient"] = (reply["gradient"], x.shape)
    for name, (values, shape) in wanted.items():
        if values is None or values.shape != shape:
            got = None if values is None else list(values.shape)
            raise NonFiniteError(
                f"reward service: its {name} has shape {got}, not {list(shape)}: it is another version"
            )


def _require_finite(reply: dict) -> None:
    named = {f"reward '{name}'": score for name, score in reply["scores"].items()}
    named["the weighted reward"] = reply["reward"]
    if reply["gradient"] is not None:
        named["the reward's gradient"] = reply["gradient"]
    for name, values in named.items():
        if bad := int((~finite_rows(values)).sum()):
            raise NonFiniteError(f"{name} is not finite for {bad} of {len(values)} samples")
