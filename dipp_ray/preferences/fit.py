"""Fitting a CLIP reward to preference pairs with Ray Train: checks and decoding, then the workers, then the folder.

While a fit is unfinished, `.OUT.fit` beside its out folder holds
    configuration.json  lock  train/  held_out/     what is fitted, and the pairs at the model's size
    ray/session_000/checkpoint_*/                   Ray Train's checkpoints, one session for each start of the driver
"""

import json
import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty

import ray
from ray import train
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dipp_ray.errors import NonFiniteError, RoleFailure, UserError
from dipp_ray.preferences.dataset import split, store_pairs
from dipp_ray.preferences.identity import configuration_hash, refuse_other, trajectory
from dipp_ray.preferences.output import read_record, write_output
from dipp_ray.preferences.reading import Labels, read_labels
from dipp_ray.preferences.room import await_room, cluster_has
from dipp_ray.preferences.settings import FitConfig
from dipp_ray.preferences.state import WEIGHTS, latest_state
from dipp_ray.preferences.worker import fit_worker
from dipp_ray.rewards.clip import load_clip
from dipp_ray.storage.aside import rename_folder
from dipp_ray.storage.locks import alone

CONFIGURATION = "configuration.json"
SILENCE_S = 60.0  # without a word from the workers that is said, seconds
TELL_EVERY_S = 2.0

Progress = Callable[[int, dict], None]
Say = Callable[[str], None]


def fit_reward(config: FitConfig, progress: Progress | None = None, say: Say = print) -> dict:
    """Fit, or go on with a fit, and leave the model in `config.out` as `ClipReward` loads it; answers its fit.json.

    progress(step, message) is called, in another thread, with what `fit_worker` tells: the keys "accuracy" and so on
    at step 0 and every `report_every` updates. Needs Ray, and folders that its workers see. Raises UserError for bad
    input, before any worker starts; NonFiniteError where the fit diverges; RoleFailure where workers are lost too
    often. What is in `out` stays until the new model is whole, and a finished fit of this configuration is answered
    without another.
    """
    with prepared(config, say) as fit:
        return fit.record or fit.run(progress)


@contextmanager
def prepared(config: FitConfig, say: Say = print) -> Iterator["RewardFit"]:
    """All that needs no Ray: input checked, pairs decoded, and the work folder held against a second driver."""
    _, _ = load_clip(config.base)
    labels = read_labels(config.pairs, config.columns)
    parts = [labels, *([read_labels(config.held_out, config.columns)] if config.held_out else [])]
    if config.held_out:
        shares = [(part, list(range(len(part)))) for part in parts]
    else:
        shares = [(labels, rows) for rows in split(labels, config.held_out_share)]
    fit = RewardFit(config, configuration_hash(config, parts), tuple(len(rows) for _, rows in shares), say)
    if (record := read_record(config.out_folder)) is not None:
        if record["configuration"] == fit.configuration:
            fit.record = record
            yield fit
            return
        refuse_other(config, record.get("settings", {}), config.out_folder, "a fit")
    try:
        config.work_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{config.out_folder} cannot be written: {error.strerror}: choose another `out`") from None
    refusal = f"another program is fitting in {config.work_folder}: wait for it, or choose another `out`"
    with alone(config.work_folder / "lock", refusal):
        fit.take_over()
        fit.decode(shares)
        yield fit


class RewardFit:
    """One fit in its work folder. record: its fit.json if it was finished before, else None."""

    def __init__(self, config: FitConfig, configuration: str, counts: tuple[int, int], say: Say):
        self.config, self.configuration, self.counts, self.say = config, configuration, counts, say
        self.work = config.work_folder
        self.record: dict | None = None

    def take_over(self) -> None:
        """Keep the work folder if it is this fit's; else empty it, unless that would lose a checkpoint."""
        note = self.work / CONFIGURATION
        try:
            found = json.loads(note.read_text())
        except (OSError, ValueError):
            found = {}
        if found.get("configuration") == self.configuration:
            return
        if latest_state(self.work / "ray"):
            refuse_other(self.config, found.get("settings", {}), self.work, "an unfinished fit")
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        body = {"configuration": self.configuration, "settings": trajectory(self.config)}
        note.write_text(json.dumps(body))

    def decode(self, shares: list[tuple[Labels, list[int]]]) -> None:
        """Bring the pairs to the model's size, once."""
        clip, _ = load_clip(self.config.base)
        size = clip.config.vision_config.image_size
        for name, (labels, rows) in zip(("train", "held_out"), shares, strict=True):
            if not (self.work / name).is_dir():
                tick = _ticker(f"decoding {name.replace('_', '-')} pairs", len(rows), self.say)
                store_pairs(self.work / name, labels, rows, self.config.columns, size, tick)

    def run(self, progress: Progress | None = None) -> dict:
        """Train from the last checkpoint on and leave the model in place; answers its fit.json."""
        started, config = time.perf_counter(), self.config
        found = latest_state(self.work / "ray")
        resumed = found[1]["step"] if found else 0
        if resumed < config.fit.steps:
            self._train(found[0] if found else None, progress)
            found = latest_state(self.work / "ray")
        folder, state = found
        record = {
            "configuration": self.configuration,
            "held_out": {key: value for key, value in state["history"][-1].items() if key not in ("step", "loss")}
            | {"reliability": state["reliability"]},
            "base": {key: value for key, value in state["history"][0].items() if key not in ("step", "loss")},
            "train_pairs": self.counts[0],
            "held_out_pairs": self.counts[1],
            "seconds": round(time.perf_counter() - started, 1),
            "resumed_at": resumed,
            "settings": trajectory(config),
            "files": {"base": config.base, "pairs": config.pairs, "held_out": config.held_out},
            "history": state["history"],
        }
        fitted = self.work / "fitted"
        shutil.rmtree(fitted, ignore_errors=True)
        fitted.mkdir()
        write_output(fitted, config, folder / WEIGHTS, record)
        rename_folder(fitted, config.out_folder)
        shutil.rmtree(self.work)
        return record

    def _train(self, resume: Path | None, progress: Progress | None) -> None:
        root, workers = self.work / "ray", self.config.workers
        sessions = sorted(root.glob("session_*"))
        for session in sessions:
            if resume is None or not resume.is_relative_to(session):
                shutil.rmtree(session)
        number = int(sessions[-1].name.removeprefix("session_")) + 1 if sessions else 0
        await_room(workers)
        for name in ("ray.train", "ray.train.v2"):
            logging.getLogger(name).setLevel(logging.ERROR)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        listener = Listener(queue, progress, self.say if workers.most > 1 or resume else None, self.say)
        trainer = TorchTrainer(
            fit_worker,
            train_loop_config={
                "base": str(Path(self.config.base).absolute()),
                "work": str(self.work),
                "resume": str(resume) if resume else None,
                "settings": self.config.fit.model_dump(),
                "threads": workers.threads,
                "every": self.config.checkpoint.every,
                "queue": queue,
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
                name=f"session_{number:03d}",
                storage_path=str(root),
                checkpoint_config=train.CheckpointConfig(num_to_keep=self.config.checkpoint.keep),
                failure_config=train.FailureConfig(max_failures=workers.max_failures),
                logging_config=train.LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            with _interruptible():
                trainer.fit()
        except train.WorkerGroupError as error:
            raise _cause(error, self.config) from error
        finally:
            listener.stop()
        if listener.not_finite:
            shutil.rmtree(root)  # its checkpoints lead there again
            raise NonFiniteError(listener.not_finite)


class Listener:
    """Passes on what the workers tell, in a thread of its own."""

    def __init__(self, queue: Queue, progress: Progress | None, say_start: Say | None, say: Say):
        self.queue, self.progress, self.say_start, self.say = queue, progress, say_start, say
        self.not_finite: str | None = None
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.queue.put(None)
        self.thread.join()
        self.queue.shutdown()

    def _listen(self) -> None:
        silent = 0.0
        while True:
            try:
                message = self.queue.get(timeout=SILENCE_S)
            except Empty:
                silent += SILENCE_S
                self.say(f"waiting for the workers, no word for {silent:.0f} s; {cluster_has()}")
                continue
            silent = 0.0
            if message is None:
                return
            if "not_finite" in message:
                self.not_finite = message["not_finite"]
                continue
            if "started" in message and self.say_start:
                count, step = message["workers"], message["step"]
                self.say_start(f"fitting with {count} worker{'s' if count > 1 else ''} from update {step}")
            if self.progress:
                self.progress(message["step"], message)


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
def _interruptible() -> Iterator[None]:
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


def _ticker(what: str, total: int, say: Say) -> Callable[[int], None]:
    """Says how far it is, at most every TELL_EVERY_S seconds."""
    told = [time.monotonic()]

    def tick(done: int) -> None:
        if time.monotonic() - told[0] >= TELL_EVERY_S:
            told[0] = time.monotonic()
            say(f"{what} {done:,}/{total:,}")

    return tick
