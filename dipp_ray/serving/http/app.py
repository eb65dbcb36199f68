"""The reward service over HTTP: the contract as routes, with limits, tokens, and errors that say what to do."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from typing import Any

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from dipp_ray.errors import CallError
from dipp_ray.serving.contract.calls import Question
from dipp_ray.serving.contract.failures import DeadlineError, Draining, ModelError, QueueFull
from dipp_ray.serving.contract.records import (
    JSON,
    MIB,
    SAFETENSORS,
    ErrorReply,
    HealthRecord,
    JsonReply,
    ScoreOptions,
    ServiceRecord,
)
from dipp_ray.serving.core.ingress import RewardIngress
from dipp_ray.serving.http.admission import Admission
from dipp_ray.serving.http.bodies import parse, rendered
from dipp_ray.serving.http.document import BINARY, MEANINGS, TEXT_CONTENT, page, request_content, secured
from dipp_ray.serving.http.errors import HttpError, as_http
from dipp_ray.serving.http.refusals import HEADER, as_text
from dipp_ray.serving.http.tokens import bearer, trainer_of
from dipp_ray.serving.http.uploads import Uploads, announced, body_of, require_length

AT_A_TIME = 2  # bodies that are read: a file of one colour is a thousand times smaller than its pixels
ANYBODY = "anonymous"  # where no tokens are, callers say who they are in the body
log = logging.getLogger("ray.serve")


class HttpIngress(RewardIngress):
    """The ingress with its face for Ray Serve's HTTP proxy."""

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_http(self)


def build_http(service: RewardIngress) -> FastAPI:
    """The ASGI application in front of `service`."""
    app = FastAPI(
        title="dipp-ray reward service",
        description="Scores of reward models, and the exact gradient of their weighted sum by what was sent.",
        version=service.describe().version,
        docs_url=None,  # FastAPI's page loads scripts from elsewhere
        redoc_url=None,
    )
    identify = [Depends(HTTPBearer(auto_error=False))]  # says in the document how to identify oneself
    limits, calls = service.settings.limits, service.settings.queue.calls
    latents, vaes = service.settings.latent_channels is not None, list(service.settings.vaes)
    admission = Admission()
    readers = ThreadPoolExecutor(AT_A_TIME, "read")  # a thread that reads goes on where its caller is gone
    uploads = Uploads(int(service.settings.queue.mib * MIB))
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorReply, "description": meaning} for status, meaning in MEANINGS.items()
    }
    refusals: dict[int | str, dict[str, Any]] = {status: errors[status] for status in (401, 403)}
    answer: dict[str, Any] = {"model": JsonReply, "content": {SAFETENSORS: {"schema": BINARY}}}

    @contextmanager
    def room_for(trainer: str | None):
        """The place of one more call of a trainer, from the header alone: before its body is read. Raises TrainerFull.

        Without tokens nobody is known before the body is."""
        if trainer is None:
            yield
            return
        with ExitStack() as held:
            with service.metrics.before_a_call(trainer):
                held.enter_context(admission.call(f"trainer '{trainer}'", calls))
                service.require_room(trainer)
            yield

    async def read(request: Request, kind: str, trainer: str) -> tuple[np.ndarray, ScoreOptions]:
        """(x, what is asked about it) of a body that is bounded on its way."""
        most = int(limits.body_mib * MIB)
        require_length(request, most)
        with uploads.body(trainer, announced(request, most)) as held:
            body = await body_of(request, held, most, limits.upload_s)
            return await asyncio.get_running_loop().run_in_executor(readers, parse, kind, body, limits)

    @app.post(
        "/v1/score",
        dependencies=identify,
        summary="Score images or latents, and differentiate the weighted reward by them.",
        response_description="Rewards, scores and, if asked for, the gradient, in the form of the call.",
        responses={200: answer, **errors},
        openapi_extra={"requestBody": {"required": True, "content": request_content(limits, latents, vaes)}},
    )
    async def score(request: Request) -> Response:
        trainer = identified(request, service)
        with room_for(trainer):
            with service.metrics.before_a_call(trainer or ANYBODY):
                kind = content_type(request)
                x, options = await read(request, kind, trainer or ANYBODY)
            reply = await service.answer(
                x,
                options.prompts,
                Question(options.space, options.gradient, options.held_out, options.vae),
                trainer or options.trainer,
                options.deadline_s,
            )
        return await asyncio.to_thread(rendered, kind, reply, options)

    @app.get(
        "/v1/models",
        dependencies=identify,
        response_description="What it serves.",
        responses=refusals,
        response_model_exclude_defaults=True,  # as `ServiceRecord.to_plain`
    )
    async def models(request: Request) -> ServiceRecord:
        """The models, their part in the sum, and the limits."""
        identified(request, service)
        return service.describe()

    ill = {"model": HealthRecord, "description": "One cannot, or the service is being stopped."}

    @app.get("/healthz", response_description="All can.", responses={503: ill})
    async def healthz(response: Response) -> HealthRecord:
        """Whether every required model can score. Open to all."""
        health = await service.health()
        response.status_code = 200 if health.ok else 503
        return health

    @app.get(
        "/metrics",
        dependencies=identify,
        response_class=Response,
        response_description="Counters and histograms.",
        responses={200: {"content": TEXT_CONTENT}, **refusals},
    )
    async def metrics(request: Request) -> Response:
        """Counters for Prometheus."""
        identified(request, service)
        refused = as_text(request.headers.get(HEADER.decode(), ""))
        return Response(service.metrics_text() + refused, media_type="text/plain; version=0.0.4")

    whole = app.openapi

    def document() -> dict[str, Any]:
        return secured(whole(), bool(service.tokens))

    app.openapi = document  # type: ignore[method-assign]

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(page(app.openapi(), str(request.base_url).rstrip("/"), bool(service.tokens)))

    def answered(error: HttpError) -> Response:
        return Response(error.body, error.status, error.headers, JSON)

    @app.exception_handler(HttpError)
    async def told(request: Request, error: HttpError) -> Response:
        return answered(error)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return answered(HttpError(error.status_code, "no_route", f"{error.detail}: see /docs", error.headers))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        known = as_http(error)
        if known.status == 500 and not isinstance(error, ModelError):
            log.exception("reward service: %s", request.url.path, exc_info=error)
        return answered(known)

    for kind in (CallError, QueueFull, Draining, DeadlineError, ModelError):
        app.add_exception_handler(kind, failed)
    return app


def identified(request: Request, service: RewardIngress) -> str | None:
    """The trainer whose token came, or None where no tokens are configured: then only this machine may call."""
    if not service.tokens:
        if on_loopback(request):
            return None
        raise HttpError(403, "no_tokens", "no tokens are configured, so only callers on the same machine are answered")
    trainer = trainer_of(bearer(request.headers.get("authorization", "")), service.tokens)
    if trainer is None:
        raise HttpError(
            401, "unauthorised", "no token, or none of this service's: send one of them as Authorization: Bearer TOKEN",
            {"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
    return trainer


def on_loopback(request: Request) -> bool:
    if "forwarded" in request.headers or "x-forwarded-for" in request.headers:
        return False  # a proxy calls for somebody else
    try:
        return request.client is not None and ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def content_type(request: Request) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (SAFETENSORS, JSON):
        raise HttpError(415, "media_type", f"send {SAFETENSORS} or {JSON}, not '{kind[:60]}'")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HttpError(415, "encoding", "send the body without content-encoding")
    return kind
