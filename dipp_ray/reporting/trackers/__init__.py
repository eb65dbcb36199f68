"""Where a run's numbers and grids go beside its own record: TensorBoard, Weights & Biases, MLflow, each by its package.

What is particular to one of them is its file here. A tracker that fails never ends a run, and one that waits for its
server holds no step up.
"""

import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from dipp_ray.errors import UserError
from dipp_ray.reporting.trackers.behind import Behind

Name = Literal["tensorboard", "wandb", "mlflow"]
CLASSES = {
    "tensorboard": ("dipp_ray.reporting.trackers.tensorboard", "TensorBoard"),
    "wandb": ("dipp_ray.reporting.trackers.wandb", "Wandb"),
    "mlflow": ("dipp_ray.reporting.trackers.mlflow", "Mlflow"),
}
Record = dict[str, Any]  # "step", "time" (seconds since 1970), and values, of which one that is not finite is None
Say = Callable[[str], None]


class Tracker(Protocol):
    """What a file here defines: a class of (run folder, first step from which what it was told does not count)."""

    PACKAGE: str  # what is imported
    REMOTE: bool  # whether it may wait for a server
    fresh: bool  # whether it knows nothing of the run yet

    @staticmethod
    def check() -> None:
        """Raise UserError where it could not be used, though its package is there."""

    def write(self, record: Record, grid: Path | None) -> None: ...
    def close(self) -> None: ...


def require_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that is not installed, or has not what it needs. Each package is imported."""
    for name in names:
        tracker = _class(name)
        try:
            # A folder of that name is a package without a file: W&B leaves one called wandb where it was run.
            installed = getattr(importlib.import_module(tracker.PACKAGE), "__file__", None) is not None
        except ModuleNotFoundError:
            installed = False
        except Exception as error:  # whatever a broken installation raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"log.trackers: {name} does not import ({reason}): mend it, or leave it out") from None
        if not installed:
            raise UserError(
                f"log.trackers: {name} is not installed: pip install 'dipp-ray[{name}]', or leave it out of the list"
            )
        tracker.check()


class Trackers:
    """The trackers of one run, opened at the first record. One that fails is said once, and told nothing more."""

    def __init__(self, names: Sequence[str], folder: Path, say: Say):
        self._names, self._folder, self._say = tuple(names), folder, say
        self._open: dict[str, Tracker | Behind] | None = None
        self._first_step: int | None = None

    def resume(self, step: int) -> None:
        """What they were told of steps beyond `step` does not count; -1: the run begins anew."""
        self.close()
        self._open, self._first_step = None, step + 1

    def write(self, record: Record, grid: Path | None, before: Iterable[tuple[Record, Path | None]]) -> None:
        """Tell each tracker one record and its grid; one that knows nothing of the run is told those `before` first."""
        if self._open is None:
            self._open = {}
            earlier = list(before) if self._names else []
            for name in self._names:  # as they are now: one that fails leaves them
                self._try(name, "open", self._opened, name, earlier)
        for name, tracker in list(self._open.items()):
            self._try(name, f"write step {record['step']}", tracker.write, record, grid)

    def close(self) -> None:
        for name, tracker in list((self._open or {}).items()):
            self._try(name, "close", tracker.close)
        self._open = {}

    def _opened(self, name: str, earlier: list[tuple[Record, Path | None]]) -> None:
        assert self._open is not None

        def open_and_tell() -> Tracker:
            tracker = _class(name)(self._folder, self._first_step)
            for record, grid in earlier if tracker.fresh else ():
                tracker.write(record, grid)
            return tracker

        if _class(name).REMOTE:
            self._open[name] = Behind(open_and_tell, name, lambda what, error: self._lost(name, what, error))
        else:
            self._open[name] = open_and_tell()

    def _try(self, name: str, what: str, work: Callable, *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:  # of a library that is not the run's own
            self._lost(name, what, error)

    def _lost(self, name: str, what: str, error: Exception) -> None:
        (self._open or {}).pop(name, None)
        self._names = tuple(other for other in self._names if other != name)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        self._say(f"{name} could not {what} ({reason}): the run goes on without it, and metrics.jsonl has everything")


def _class(name: str) -> Any:
    module, attribute = CLASSES[name]
    return getattr(importlib.import_module(module), attribute)
