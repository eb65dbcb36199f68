"""The reward service over HTTP: `wire.py`'s contract as routes, with limits, tokens, and errors that say what to do."""

import asyncio
import logging
from contextlib import contextmanager
from ipaddress import ip_address

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from dipp_ray.serving.calls import DeadlineError, Draining, ModelError
from dipp_ray.serving.document import BINARY, REQUEST_CONTENT, TEXT_CONTENT, page
from dipp_ray.serving.ingress import Rewards, ServiceReply, check_limits
from dipp_ray.serving.pictures import pixels_of
from dipp_ray.serving.queue import QueueFull
from dipp_ray.serving.wire import (
    JSON,
    REPLY,
    REQUEST,
    SAFETENSORS,
    ErrorBody,
    ErrorReply,
    HealthRecord,
    JsonCall,
    JsonReply,
    ReplyRecord,
    ScoreOptions,
    ServiceRecord,
    WireError,
    pack,
    tensor_of,
    tensor_record,
    to_half,
    unpack,
)

MIB = 2**20
DRAINING_RETRY_S, UPLOAD_RETRY_S = 5, 1
MODEL_STATUS = {"refused": 422, "failed": 500, "lost": 503}
log = logging.getLogger("ray.serve")


class HttpError(Exception):
    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


def build_http(service: Rewards) -> FastAPI:
    """The ASGI application in front of `service`."""
    app = FastAPI(
        title="dipp-ray reward service",
        description="Scores of reward models, and the exact gradient of their weighted sum by what was sent.",
        version=service.describe().version,
        docs_url=None,  # FastAPI's page loads scripts from elsewhere
        redoc_url=None,
    )
    bearer = [Depends(HTTPBearer(auto_error=False))]  # says in the document how to identify oneself
    limits = service.settings.limits
    uploads = Uploads(int(service.settings.queue.mib * MIB))
    errors = {status: {"model": ErrorReply} for status in (400, 401, 403, 408, 413, 415, 422, 500, 503, 504)}

    @app.post(
        "/v1/score",
        dependencies=bearer,
        summary="Score images or latents, and differentiate the weighted reward by them.",
        responses=errors | {200: {"model": JsonReply, "content": {SAFETENSORS: {"schema": BINARY}}}},
        openapi_extra={"requestBody": {"required": True, "content": REQUEST_CONTENT}},
    )
    async def score(request: Request) -> Response:
        trainer = identified(request, service)
        kind = content_type(request)
        most = int(limits.body_mib * MIB)
        with uploads.room(announced(request, most)):
            body = await body_of(request, most)
            x, options = await asyncio.to_thread(parse, kind, body, limits)
            del body
        reply = await service.answer(
            x, options.prompts, options.space, options.gradient, trainer or options.trainer, options.deadline_s
        )
        return await asyncio.to_thread(rendered, kind, reply, options)

    @app.get("/v1/models", dependencies=bearer, responses={code: errors[code] for code in (401, 403)})
    async def models(request: Request) -> ServiceRecord:
        """The models, their part in the sum, and the limits."""
        identified(request, service)
        return service.describe()

    @app.get("/healthz", responses={503: {"model": HealthRecord}})
    async def healthz(response: Response) -> HealthRecord:
        """Whether every required model can score. Open to all."""
        health = await service.health()
        response.status_code = 200 if health.ok else 503
        return health

    @app.get(
        "/metrics",
        dependencies=bearer,
        response_class=Response,
        responses={200: {"content": TEXT_CONTENT}} | {code: errors[code] for code in (401, 403)},
    )
    async def metrics(request: Request) -> Response:
        """Counters for Prometheus."""
        identified(request, service)
        return Response(service.metrics_text(), media_type="text/plain; version=0.0.4")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))

    def answered(error: HttpError) -> Response:
        reply = ErrorReply(error=ErrorBody(code=error.code, message=str(error)))
        return Response(reply.model_dump_json(), error.status, error.headers, JSON)

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

    for kind in (WireError, ValidationError, ValueError, QueueFull, Draining, DeadlineError, ModelError):
        app.add_exception_handler(kind, failed)
    return app


def as_http(error: Exception) -> HttpError:
    """What a caller is told about an error. What is not foreseen says nothing about the inside."""
    match error:
        case WireError():
            return HttpError(400, "malformed", str(error))
        case ValidationError():
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            return HttpError(422, "invalid", f"{where[:100]}: {message}" if where else message)
        case ModelError():
            retry = {"Retry-After": "1"} if error.kind == "lost" else {}
            return HttpError(MODEL_STATUS[error.kind], f"model_{error.kind}", error.public, retry)
        case ValueError():
            return HttpError(422, "invalid", str(error))
        case QueueFull():
            return HttpError(503, "queue_full", str(error), {"Retry-After": f"{error.retry_after_s:.0f}"})
        case Draining():
            return HttpError(503, "stopping", str(error), {"Retry-After": str(DRAINING_RETRY_S)})
        case DeadlineError():
            return HttpError(504, "too_late", str(error))
    return HttpError(500, "internal", "the service failed at this call; its log says more")


def identified(request: Request, service: Rewards) -> str | None:
    """The trainer whose token came, or None where no tokens are configured: then only this machine may call."""
    if not service.tokens:
        if on_loopback(request):
            return None
        raise HttpError(403, "no_tokens", "no tokens are configured, so only callers on the same machine are answered")
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    trainer = service.tokens.trainer(token.strip()) if scheme.lower() == "bearer" else None
    if trainer is None:
        raise HttpError(
            401, "unauthorised", "send one of the service's tokens: Authorization: Bearer TOKEN",
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


class Uploads:
    """Bodies that are on their way or being read, at most so many bytes: the queue's bound comes after them."""

    def __init__(self, most: int):
        self._most, self._bytes = most, 0

    @contextmanager
    def room(self, size: int):
        """Raises QueueFull where there is none."""
        if self._bytes + size > self._most:
            raise QueueFull("too many calls are being sent at once: try again", UPLOAD_RETRY_S)
        self._bytes += size
        try:
            yield
        finally:
            self._bytes -= size


def announced(request: Request, most: int) -> int:
    """How long the body says it is, in bytes; `most` where it does not say, and `most` + 1 for all that is longer."""
    length = request.headers.get("content-length", "")
    return min(int(length[:20]), most + 1) if length.isdecimal() and length.isascii() else most


async def body_of(request: Request, most: int) -> bytes:
    """The body, refused before it is held where it says itself that it is too long, and while it comes otherwise."""
    too_long = HttpError(
        413, "too_long", f"the body is longer than {most / MIB:g} MiB: send fewer rows", {"Connection": "close"}
    )
    if announced(request, most) > most:
        raise too_long
    parts, total = [], 0
    try:
        async for part in request.stream():
            total += len(part)
            if total > most:
                raise too_long
            parts.append(part)
    except ClientDisconnect:
        raise HttpError(400, "cut_off", "the caller left before all of the body had come") from None
    return b"".join(parts)


def parse(kind: str, body: bytes, limits) -> tuple[np.ndarray, ScoreOptions]:
    """(x in fp32, options) of a body. Raises WireError, ValidationError or ValueError."""
    if kind == SAFETENSORS:
        tensors, metadata = unpack(body, int(limits.header_kib * 1024))
        if REQUEST not in metadata:
            raise WireError(f"the metadata has no '{REQUEST}': a JSON record with the prompts")
        options = ScoreOptions.model_validate_json(metadata[REQUEST])
        if tensors.keys() != {"x"}:
            raise WireError(f"send one tensor named x, not {len(tensors)} others")
        x = tensors["x"]
    else:
        options = JsonCall.model_validate_json(body)
        rows = options.images if options.images is not None else options.x.shape
        if len(options.prompts) > limits.rows or (options.images is not None and len(rows) > limits.rows):
            raise ValueError(f"at most {limits.rows} rows in one call")
        if options.images is not None:
            x = pixels_of(options.images, limits.image_side, int(limits.body_mib * MIB))
        else:
            x = tensor_of(options.x)
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x of shape {list(x.shape)[:8]} was sent: expected [B, C, height, width]")
    check_limits(x.shape, options.prompts, options.space, limits)
    if x.dtype == np.uint8:
        if options.space != "images":
            raise ValueError("latents were sent as uint8: send fp32 or fp16")
        return x.astype(np.float32) / 255, options
    return x.astype(np.float32), options


def rendered(kind: str, reply: ServiceReply, options: ScoreOptions) -> Response:
    """The reply in the form in which the call came."""
    combined = reply.combined
    if kind == JSON:
        record = JsonReply(
            reward=numbers(combined.reward),
            scores={name: numbers(score) for name, score in combined.scores.items()},
            held_out=reply.held_out,
            failed=public(reply),
            gradient=None if combined.gradient is None else tensor_record(combined.gradient),
        )
        return Response(record.model_dump_json(), media_type=JSON)
    tensors = {"reward": combined.reward.astype(np.float32)}
    tensors |= {f"scores/{name}": score.astype(np.float32) for name, score in combined.scores.items()}
    if combined.gradient is not None:
        tensors["gradient"] = combined.gradient.astype(np.float32)
        if options.reply_dtype == "fp16":
            tensors["gradient"], tensors["gradient_scale"] = to_half(tensors["gradient"])
    record = ReplyRecord(held_out=reply.held_out, failed=public(reply))
    return Response(pack(tensors, REPLY, record), media_type=SAFETENSORS)


def public(reply: ServiceReply) -> dict[str, str]:
    return {name: error.public for name, error in reply.failed.items()}


def numbers(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
