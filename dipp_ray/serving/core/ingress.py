"""The ingress of a reward service: one queue, one sum, for callers by handle and by HTTP. No torch in this process."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Annotated

import numpy as np
from pydantic import Field

from dipp_ray.errors import CallError, UserError
from dipp_ray.rewards.combination import Answer, combine, trained
from dipp_ray.rewards.terms import SumTerm
from dipp_ray.serving.contract.calls import Question, vae_of, validate_call
from dipp_ray.serving.contract.failures import Draining, ModelError
from dipp_ray.serving.contract.limits import LimitsSection, check_limits
from dipp_ray.serving.contract.records import MIB, HealthRecord, LimitsRecord, ModelRecord, ServiceRecord, VaeRecord
from dipp_ray.serving.core.handles import DecoderHandles, ModelHandles, health_of
from dipp_ray.serving.core.joining import IngressReply, joined
from dipp_ray.serving.core.metrics import ServiceMetrics, outcome_of
from dipp_ray.serving.core.queue import FairQueue, QueueSection
from dipp_ray.serving.core.scheduler import Scheduler
from dipp_ray.serving.core.work import Call, Worked
from dipp_ray.settings import Section, validate

RANGE_SLACK = 1e-3  # rounding of pixels at the ends of [0, 1]
HEALTH_EVERY_S = 2.0
DECODER = "VAE-"  # before a VAE's name: the deployment that decodes
log = logging.getLogger("ray.serve")


class UserConfig(Section):
    """What the ingress changes while it runs: the sum, and who may call."""

    terms: list[SumTerm] = Field(min_length=1, description="Each deployed model's part in the sum.")
    tokens: dict[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], str] = Field(
        description="SHA-256 of each token in hex, to its trainer's name."
    )


@dataclass(frozen=True)
class IngressSettings:
    """What needs a restart to change. slots: replicas that can compute at the same time. models: the `model` of each,
    by name. flat: models without a gradient. vaes: those that are decoded by for all models; without any, each model
    decodes latents of `latent_channels` channels by itself."""

    name: str
    batch_rows: int
    deterministic: bool
    optional_wait_s: float
    slots: int
    latent_channels: int | None
    models: dict[str, str]
    flat: tuple[str, ...]
    limits: LimitsSection
    queue: QueueSection
    vaes: dict[str, VaeRecord]


class RewardIngress:
    """models: a Serve handle to each reward model, by its name; decoders: to each decoder, by its VAE's."""

    def __init__(self, settings: IngressSettings, models: dict, decoders: dict):
        self.settings = settings
        self.metrics = ServiceMetrics()
        self._deployed = models | {f"VAE {name}": handle for name, handle in decoders.items()}
        self._terms: tuple[SumTerm, ...] = ()
        self._summed: tuple[SumTerm, ...] = ()  # those that are not held out
        self.tokens: dict[str, str] = {}  # of callers by HTTP: digest to trainer, empty for none
        self._draining = False
        self._health: asyncio.Future | None = None
        self._health_asked = 0.0
        self._open = 0  # calls that were taken and not answered yet
        queue = FairQueue(settings.queue.rows, int(settings.queue.mib * MIB))
        self._scheduler = Scheduler(
            ModelHandles(models, settings.optional_wait_s).ask,
            queue,
            settings.batch_rows,
            settings.deterministic,
            settings.slots,
            DecoderHandles(decoders),
        )
        self._scheduler.began = self._count_batch

    def reconfigure(self, user_config: dict) -> None:
        """Take the sum and the tokens: {"terms": [a `SumTerm` each], "tokens": {SHA-256 in hex: trainer}}.

        Calls that came before keep their sum. Where the terms are not those of the deployed models, or the tokens no
        digests, the old ones stay in force and the log says why; UserError is raised at the start alone, for Serve
        ends a replica that raises.
        """
        try:
            terms, tokens = self._read(user_config)
        except UserError as error:
            if not self._terms:
                raise
            log.error("the old sum and tokens stay: %s", error)
            return
        self._terms, self.tokens = terms, tokens
        self._summed = tuple(trained(terms))

    def _read(self, user_config: dict) -> tuple[tuple[SumTerm, ...], dict[str, str]]:
        given = validate(user_config, UserConfig, "user_config")
        named, deployed = sorted(term.name for term in given.terms), sorted(self.settings.models)
        if named != deployed:
            raise UserError(f"user_config.terms are of {named}, but the deployed models are {deployed}: name each once")
        return tuple(given.terms), given.tokens

    # -- by handle ---------------------------------------------------------------------------------------------------

    async def score(
        self, x: np.ndarray, prompts: list[str], question: Question, trainer: str, expires_s: float
    ) -> dict:
        """x [B, C, h, w] float32, B prompts -> arrays: reward [B], scores {name: [B]}, gradient [B, C, h, w] or None.

        Also held_out [name], and failed {name: reason}: models that are not required and gave no answer. Raises
        CallError for a call that cannot be answered, QueueFull, Draining, DeadlineError, ModelError. Values that are
        not finite are returned as they are.
        """
        reply = await self.answer(np.asarray(x), list(prompts), question, trainer, expires_s)
        combined = reply.combined
        return {
            "reward": combined.reward,
            "scores": combined.scores,
            "gradient": combined.gradient,
            "held_out": reply.held_out,
            "failed": {name: str(error) for name, error in reply.failed.items()},
        }

    def describe(self) -> ServiceRecord:
        settings, limits = self.settings, self.settings.limits
        models = [
            ModelRecord(
                model=settings.models[term.name], differentiable=term.name not in settings.flat, **term.model_dump()
            )
            for term in self._terms
        ]
        return ServiceRecord(
            name=settings.name,
            version=version("dipp-ray"),
            deterministic=settings.deterministic,
            batch_rows=settings.batch_rows,
            latent_channels=settings.latent_channels,
            vaes=settings.vaes,
            models=models,
            limits=LimitsRecord(**limits.model_dump()),
        )

    async def models(self) -> dict:
        """`describe` as a record of plain values."""
        return self.describe().to_plain()

    async def opening(self) -> tuple[IngressSettings, dict]:
        """What another ingress of the same models is made of: its settings and its `user_config`, without tokens."""
        return self.settings, {"terms": [term.model_dump() for term in self._terms], "tokens": {}}

    async def health(self) -> HealthRecord:
        """Each model's own health, asked for at most every HEALTH_EVERY_S seconds, whoever wants to know."""
        if self._health is None or time.monotonic() - self._health_asked > HEALTH_EVERY_S:
            self._health_asked = time.monotonic()
            # In a context of its own: it is for all who ask, and Serve cancels what a cancelled call has begun.
            self._health = asyncio.get_running_loop().create_task(self._ask_health(), context=contextvars.Context())
        health = await asyncio.shield(self._health)
        return health.model_copy(update={"ok": health.ok and not self._draining})

    async def _ask_health(self) -> HealthRecord:
        said = await asyncio.gather(*map(health_of, self._deployed.values()))
        models = dict(zip(self._deployed, said, strict=True))
        optional = {term.name for term in self._terms if not term.required}
        return HealthRecord(ok=all(models[name] == "ok" for name in models.keys() - optional), models=models)

    async def drain(self, wait_s: float) -> int:
        """Take no more calls and wait for those that were taken; returns how many are left after `wait_s` seconds."""
        self._draining = True
        until = time.monotonic() + wait_s
        while self._open and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return self._open

    # -- both transports ---------------------------------------------------------------------------------------------

    async def answer(
        self, x: np.ndarray, prompts: list[str], question: Question, trainer: str, expires_s: float
    ) -> IngressReply:
        """The reply to one call; raises as `score` does, and counts how it ended."""
        start, label, outcome = time.monotonic(), self.metrics.trainer(trainer), "failed"
        self._open += 1
        try:
            reply = await self._answer(x, prompts, question, trainer, expires_s)
            outcome = "answered"
            self.metrics.rows.labels(label).inc(len(x))
            self.metrics.seconds.observe(time.monotonic() - start)
            return reply
        except asyncio.CancelledError:
            outcome = "caller gone"
            raise
        except Exception as error:
            outcome = outcome_of(error)
            raise
        finally:
            self._open -= 1
            self.metrics.calls.labels(label, outcome).inc()

    async def _answer(self, x, prompts, question, trainer, expires_s) -> IngressReply:
        if self._draining:
            raise Draining("the service is being stopped: call another one")
        if x.dtype not in (np.float32, np.float64):
            raise CallError(f"{x.dtype} was sent: send float32")
        space, gradient = question.space, question.gradient
        terms = self._terms if question.held_out else self._summed
        if not terms:
            raise CallError("every reward term is held out, and held-out scores were not asked for")
        vae = vae_of(question, self.settings.vaes)
        channels = self.settings.vaes[vae].latent_channels if vae is not None else self.settings.latent_channels
        validate_call(x, prompts, space, gradient, channels, terms, self.settings.flat, vae)
        check_limits(x.shape, prompts, space, self.settings.limits)
        if not np.isfinite(x).all():
            raise CallError(f"{space} that are not finite were sent")
        if space == "images" and (x.min() < -RANGE_SLACK or x.max() > 1 + RANGE_SLACK):
            raise CallError(f"images in [{x.min():.3g}, {x.max():.3g}] were sent: pixels lie in [0, 1]")
        call = Call(x, prompts, space, gradient, terms, vae)
        until = time.monotonic() + expires_s
        failed: dict[str, ModelError] = {}
        while True:
            chunks, answers, without = await self._asked(call, trainer, until - time.monotonic())
            failed |= without
            summed = {term.name for term in trained(terms) if term.name in answers}
            if vae is None or not gradient or all(chunk.summed == summed for chunk in chunks):
                break
            # One that is not required failed at some chunks, and is in the sum of others: once more without it.
            call = replace(call, terms=tuple(term for term in call.terms if term.name not in failed))
        combined = combine(terms, answers, gradient and vae is None)
        if vae is not None and gradient:
            slopes = [chunk.gradient for chunk in chunks if chunk.gradient is not None]
            combined = replace(combined, gradient=np.concatenate(slopes))
        held_out = [term.name for term in terms if term.held_out]
        return IngressReply(combined, held_out, failed)

    async def _asked(
        self, call: Call, trainer: str, expires_s: float
    ) -> tuple[list[Worked], dict[str, Answer], dict[str, ModelError]]:
        """(what came of each chunk, answers by model over all of them, failed models that are not required)."""
        chunks = await self._scheduler.score(call, trainer, expires_s)
        outcomes = [chunk.outcomes for chunk in chunks]
        without = {name for chunk in outcomes for name, part in chunk.items() if isinstance(part, Exception)}
        self._count_failures(without)
        answers, failed = joined(call.terms, outcomes)
        self._count_failures(failed.keys() - without)
        return chunks, answers, failed

    def require_room(self, trainer: str) -> None:
        """Raise TrainerFull where this trainer's bound is reached already, whatever it would send."""
        self._scheduler.require_room(trainer)

    def _count_batch(self, batch) -> None:
        self.metrics.batch_rows.observe(sum(chunk.rows for chunk in batch))
        self.metrics.batch_callers.observe(len(batch))

    def _count_failures(self, models: Collection[str]) -> None:
        for name in models:
            self.metrics.model_failures.labels(name).inc()

    def metrics_text(self) -> bytes:
        self.metrics.waiting.set(len(self._scheduler.queue))
        self.metrics.in_flight.set(self._scheduler.in_flight)
        return self.metrics.text()
