"""What a role tells the controller about one call, beside the result that travels on."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """`metrics` are logged; `seconds` are those that the role was busy with the call."""

    metrics: dict[str, float]
    seconds: float


@dataclass
class Stopwatch:
    """Begins when it is made."""

    start: float = field(default_factory=time.perf_counter)

    def report(self, metrics: dict[str, float] | None = None) -> Report:
        return Report(metrics or {}, time.perf_counter() - self.start)
