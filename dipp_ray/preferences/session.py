"""One session of Ray Train: from the last checkpoint of a fit to its end, or to a failure in one sentence."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray import train
from ray.train.torch import TorchTrainer

from dipp_ray.errors import NonFiniteError, RoleFailure, UserError
from dipp_ray.preferences.config import FitConfig
from dipp_ray.preferences.listener import Listener, Progress, Say
from dipp_ray.preferences.room import await_room
from dipp_ray.preferences.worker import fit_worker


def train_session(config: FitConfig, folder: Path, resume: Path | None, progress: Progress | None, say: Say) -> None:
    """Fit from the checkpoint folder `resume` on (None: from the base); checkpoints are left in `folder`.

    Raises UserError where there is no room or the workers refuse their input, RoleFailure where too many are lost,
    NonFiniteError where the fit diverges.
    """
    workers, base = config.workers, Path(config.base)
    await_room(workers)
    for name in ("ray.train", "ray.train.v2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    listener = Listener(progress, say if workers.most > 1 or resume else None, say)
    trainer = TorchTrainer(
        fit_worker,
        train_loop_config={
            "base": str(base.absolute()) if base.exists() else config.base,  # a hub's id is each node's own to fetch
            "work": str(config.work_folder),
            "resume": str(resume) if resume else None,
            "settings": config.fit.model_dump(),
            "threads": workers.threads,
            "every": config.checkpoint.every,
            "queue": listener.queue,
        },
        scaling_config=train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker=workers.resources,
            accelerator_type=workers.accelerator,
            label_selector=workers.labels or None,
            elastic_resize_monitor_interval_s=workers.resize_every_s,
        ),
        run_config=train.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            checkpoint_config=train.CheckpointConfig(num_to_keep=config.checkpoint.keep),
            failure_config=train.FailureConfig(max_failures=workers.max_failures),
            logging_config=train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        with interruptible():
            trainer.fit()
    except train.WorkerGroupError as error:
        raise _cause(error, config) from error
    finally:
        listener.stop()
    if listener.not_finite:
        raise NonFiniteError(listener.not_finite)


def _cause(error: train.WorkerGroupError, config: FitConfig) -> Exception:
    """What a person needs of Ray's account of a failed worker group."""
    causes = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
    for cause in causes:
        if isinstance(cause, UserError):
            return cause
    first = next(iter(causes), error)
    text = (str(first).strip().splitlines() or [""])[0]
    return RoleFailure(
        f"fitting the reward: a worker failed, and workers.max_failures={config.workers.max_failures} were survived "
        f"({type(first).__name__}: {text}); the same command goes on from the last checkpoint"
    )


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C stays Ctrl-C: Ray Train's own handler stops the workers, then ends the program, and would stay on."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
