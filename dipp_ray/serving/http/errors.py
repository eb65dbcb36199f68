"""What a caller by HTTP is told where there is no answer."""

from collections.abc import Mapping

from dipp_ray.errors import CallError
from dipp_ray.serving.contract.failures import DeadlineError, Draining, ModelError, QueueFull, TrainerFull, WireError
from dipp_ray.serving.contract.records import ErrorBody, ErrorReply

DRAINING_RETRY_S = 5
MODEL_STATUS = {"refused": 422, "failed": 500, "lost": 503}


class HttpError(CallError):
    """What a caller by HTTP is answered where it is no call at all."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})

    @property
    def body(self) -> bytes:
        """What the caller reads: an ErrorReply as JSON."""
        return ErrorReply(error=ErrorBody(code=self.code, message=str(self))).model_dump_json().encode()


def as_http(error: Exception) -> HttpError:
    """What a caller is told about an error. What is not foreseen says nothing about the inside."""
    match error:
        case HttpError():
            return error
        case WireError():
            return HttpError(400, "malformed", str(error))
        case ModelError():
            retry = {"Retry-After": "1"} if error.kind == "lost" else {}
            return HttpError(MODEL_STATUS[error.kind], f"model_{error.kind}", error.public, retry)
        case CallError():
            return HttpError(422, "invalid", str(error))
        case TrainerFull():
            return HttpError(429, "trainer_full", str(error), {"Retry-After": f"{error.retry_after_s:.0f}"})
        case QueueFull():
            return HttpError(503, "queue_full", str(error), {"Retry-After": f"{error.retry_after_s:.0f}"})
        case Draining():
            return HttpError(503, "stopping", str(error), {"Retry-After": str(DRAINING_RETRY_S)})
        case DeadlineError():
            return HttpError(504, "too_late", str(error))
    return HttpError(500, "internal", "the service failed at this call; its log says more")
