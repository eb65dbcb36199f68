"""What the service counts, for Prometheus."""

from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dipp_ray.errors import CallError
from dipp_ray.serving.contract.failures import DeadlineError, Draining, ModelError, QueueFull

MOST_TRAINERS = 64  # labels are kept for ever, and a caller without a token names itself
OTHERS = "(others)"
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class ServiceMetrics:
    def __init__(self):
        self._registry = CollectorRegistry()
        self._trainers: set[str] = set()

        def made(kind, name: str, text: str, labels=(), **how):
            return kind(f"dipp_ray_reward_{name}", text, labels, registry=self._registry, **how)

        self.calls = made(Counter, "calls", "Calls that ended, by how.", ("trainer", "outcome"))
        self.rows = made(Counter, "rows", "Rows that were answered.", ("trainer",))
        self.seconds = made(Histogram, "call_seconds", "From a call's arrival to its answer.", buckets=SECONDS)
        self.batch_rows = made(Histogram, "batch_rows", "Rows of one batch.", buckets=ROWS)
        self.batch_callers = made(Histogram, "batch_calls", "Chunks of calls in one batch.", buckets=ROWS)
        self.model_failures = made(Counter, "model_failures", "Calls that a model failed at.", ("model",))
        self.waiting = made(Gauge, "waiting_rows", "Rows in the queue.")
        self.in_flight = made(Gauge, "batches_in_flight", "Batches that the models have.")

    def trainer(self, name: str) -> str:
        """The label of a trainer."""
        if name not in self._trainers and len(self._trainers) >= MOST_TRAINERS:
            return OTHERS
        self._trainers.add(name)
        return name

    @contextmanager
    def before_a_call(self, trainer: str):
        """Count what ends before it is a call: a body that is none, or one for which there is no room."""
        try:
            yield
        except Exception as error:
            self.calls.labels(self.trainer(trainer), outcome_of(error)).inc()
            raise

    def text(self) -> bytes:
        return generate_latest(self._registry)


def outcome_of(error: Exception) -> str:
    """How a call that was not answered ended, for the metrics."""
    match error:
        case CallError() | ModelError(kind="refused"):
            return "refused"
        case QueueFull():
            return "queue full"
        case Draining():
            return "stopping"
        case DeadlineError():
            return "too late"
    return "failed"
