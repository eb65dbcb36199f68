"""One run from its configuration to the exported pipeline: start or resume, train, watch, save, end."""

import json
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from ray.exceptions import RayError

from dipp_ray.checkpoints.store import Checkpoint, CheckpointStore
from dipp_ray.config import RunConfig
from dipp_ray.data.prompts import Prompts
from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.errors import CallError, RewardUnavailableError, RoleFailure, UserError
from dipp_ray.models.card import write_card
from dipp_ray.models.export import export_error, export_pipeline
from dipp_ray.models.pipeline import one_step_of, read_frame
from dipp_ray.reporting.metrics import MetricsLog
from dipp_ray.reporting.progress import ProgressLine
from dipp_ray.storage.locks import alone
from dipp_ray.training.checks import check, score_checkpoint
from dipp_ray.training.controller import Controller, Step
from dipp_ray.training.placement import cluster_nodes, plan, requests, reserve
from dipp_ray.training.roles import Roles, start_roles
from dipp_ray.training.shared_service import changes, judge_of
from dipp_ray.training.watch import Watch

Say = Callable[[str], None]
LARGEST_EXPORT_ERROR = 1e-4
EXPORTED = "exported.json"
LOST_SERVICE = (RewardUnavailableError, UserError, CallError, RoleFailure, RayError)


class Run:
    """A training run in its folder. `train` is the way in."""

    def __init__(self, config: RunConfig, roles: Roles, controller: Controller, store: CheckpointStore, say: Say):
        self.config, self.roles, self.controller, self.store, self.say = config, roles, controller, store, say
        self.watch = Watch(config, controller)
        self.record: dict[str, float] = {}
        self.interrupted = False

    def start(self, checkpoint: Checkpoint | None) -> int:
        """Bring both groups to their first step, fresh or from a checkpoint; answers the number of finished steps."""
        if checkpoint is not None:
            for group in (self.roles.generator, self.roles.score):
                group.all("restore", self.store.url, checkpoint.step)
            self.record = checkpoint.record["reward"]
            self.watch.falls = checkpoint.record["falls"]
            best = checkpoint.record["best"]
            self.watch.best = tuple(best) if best else None
            self.compare_service(checkpoint.record["reward_service"], self.roles.service)
            if best and best[0] == checkpoint.step:
                self.store.mark_best(*best)  # in case the run was killed between commit and mark
        else:
            self.roles.generator.all("start")
            if self.config.init.score_checkpoint:
                self.roles.score.all("take_weights", *score_checkpoint(self.config))
            self.controller.warm_score_up()
            if self.config.reward.standardise and self.controller.rewarded:
                self.record = self.controller.standardise()
        self.controller.reward_deviation = self.record.get("reward_deviation", 1.0)
        return checkpoint.step if checkpoint else 0

    def compare_service(self, before: dict | None, now: dict | None) -> None:
        """A shared service may have another sum than it had: then the run goes on, but not as the same one."""
        if not (self.config.reward.shared and before and now):
            return
        if judge_of(before) != judge_of(now):  # another model's scores are no better and no worse
            self.watch.best, self.watch.falls = None, 0
        if said := changes(before, now):
            kept = "; reward_deviation stays as it was measured" if "reward_deviation" in self.record else ""
            self.say(f"the reward service changed: {', '.join(said)}; the run goes on with it as it is now{kept}")

    def look_at_service(self) -> None:
        """A checkpoint records the service as it is now, and a person is told what changed while the run trained."""
        if self.config.reward.shared:
            try:
                (now,) = self.controller.wait([self.roles.reward.describe.remote()], "reward")
            except (
                RewardUnavailableError,
                UserError,
                CallError,
                RoleFailure,
                RayError,
            ) as error:  # the steps that are done are saved all the same
                self.say(f"what the reward service is now could not be asked: {error}")
                return
            self.compare_service(self.roles.service, now)
            self.roles.service = now

    def loop(self, done: int, metrics: MetricsLog, progress: ProgressLine) -> int:
        """Train from step `done` to the end, or to the first checkpoint after an interrupt; answers the steps done."""
        pending: Step | None = None
        if done == 0:
            first, _ = self.look(0)
            metrics.write(0, first)
            progress.update(0, first)
        clock = time.perf_counter()
        ending = self.watch.gives_up
        while done < self.config.run.steps and not ending:
            stopping = self.interrupted  # read once: an interrupt that comes later ends the run one step later
            barrier = stopping or self.is_due(done + 1)
            submitted = self.controller.submit(done, sample_ahead=not barrier)
            done += 1
            ended = [step for step in (pending, submitted if barrier else None) if step is not None]
            measured = [self.controller.collect(step)[0] for step in ended]
            speed = len(ended) * self.config.data.batch_size / (time.perf_counter() - clock)
            if barrier:
                measured[-1] |= self.at_barrier(done, stopping)
            for step, values in zip(ended, measured, strict=True):
                metrics.write(step.step + 1, values | {"images_per_second": speed})
                progress.update(step.step + 1, values | {"images_per_second": speed})
            if ended:
                clock = time.perf_counter()
            pending = None if barrier else submitted
            ending = stopping or self.watch.gives_up
        return done

    def at_barrier(self, done: int, stopping: bool) -> dict[str, float]:
        """Nothing is in flight: look and save where they are due; answers what was seen."""
        seen, best = self.look(done) if self.is_due(done) else ({}, False)
        last = stopping or done >= self.config.run.steps or self.watch.gives_up
        if last or best or done % self.config.checkpoint.every == 0:
            self.save(done)
            if best:
                self.store.mark_best(done, self.watch.best[1])
            self.store.prune(self.config.checkpoint.keep)
        return seen

    def is_due(self, done: int) -> bool:
        config = self.config
        ends = done >= config.run.steps
        return ends or done % config.log.samples_every == 0 or done % config.checkpoint.every == 0

    def look(self, done: int) -> tuple[dict[str, float], bool]:
        """The sample grid and the held-out rewards, and whether this is the best model so far."""
        seen = self.watch.look(done)
        best = self.watch.judge(done, seen)
        return seen | ({"best_step": done} if best else {}), best

    def save(self, done: int) -> None:
        """Commit a checkpoint: both groups have finished the step and nothing is in flight."""
        self.look_at_service()
        files = []
        for group in (self.roles.generator, self.roles.score):
            for share in group.all("write_share", self.store.url, done):
                files += share
        record = {
            "trajectory_hash": self.config.trajectory_hash(),
            "sizes": {"generator": len(self.roles.generator.ranks), "score": len(self.roles.score.ranks)},
            "data_cursor": {"seed": self.config.run.seed, "next_step": done},
            "reward": self.record,
            "reward_service": self.roles.service,
            "falls": self.watch.falls,
            "best": self.watch.best,
        }
        self.store.commit(done, record, files)


def train(config: RunConfig, say: Say = print) -> Path:
    """Run or resume a training run to its end; answers the run's folder. Needs a connected Ray.

    Raises UserError for bad input before anything starts. Ctrl-C or SIGTERM saves a checkpoint and stops; the same
    command goes on from there.
    """
    prompts = check(config)
    refusal = f"{config.path}: another process trains in this folder: wait for it, or set run.name"
    with alone(config.path / ".lock", refusal):
        return _train(config, prompts, say)


def _train(config: RunConfig, prompts: Prompts, say: Say) -> Path:
    store = CheckpointStore(config.checkpoint.url or str(config.path.resolve() / "checkpoints"), say)
    checkpoint = store.latest(config.trajectory_hash(), thorough=True)
    if checkpoint and checkpoint.step >= config.run.steps:
        say(f"{config.path}: all {checkpoint.step} steps are done already; delete the folder to start anew")
        if exported_step(config) != checkpoint.step:
            export_run(config, store, checkpoint, say)
        return config.path
    planned = plan(requests(config), cluster_nodes())
    print_table(planned.table())
    placement = reserve(planned.require(), config.roles.wait_s, say)
    (config.path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    roles = None
    try:
        roles = start_roles(config, placement, say)
        run = Run(config, roles, Controller(config, roles, prompts, say), store, say)
        done = run.start(checkpoint)
        if done:
            say(f"resumed from the checkpoint of step {done}")
        with (
            MetricsLog(config.path, config.log.tensorboard) as metrics,
            ProgressLine(config.run.steps, done, config.run.name) as progress,
            interrupts(run),
        ):
            metrics.resume(done if checkpoint else -1)
            run.say = run.controller.say = progress.say
            done = run.loop(done, metrics, progress)
        if run.interrupted and done < config.run.steps:
            raise KeyboardInterrupt
        if run.watch.gives_up:
            say(f"stopped at step {done}: the held-out reward fell {run.watch.falls} times since {run.watch.best}")
        export_run(config, store, store.at(done), say, run)
    except BaseException:
        with suppress(Exception):  # what failed first is what a person must read
            if roles is not None:
                roles.stop()
            else:
                placement.release()
        raise
    roles.stop()
    return config.path


def export_run(config: RunConfig, store: CheckpointStore, checkpoint: Checkpoint, say: Say, run: Run | None = None):
    """Write run/pipeline from a checkpoint's moving average; with a live run its latents are compared."""
    out = export_checkpoint(config, store, checkpoint, config.path / "pipeline")
    if run is not None:
        frame = read_frame(config.model.teacher)
        texts = run.controller.prompts.first(8)
        draws = Draws(config.run.seed, EVALUATION, 0, range(len(texts)))
        (embeds,) = run.controller.wait([run.roles.text.encode.remote(texts)], "text")
        (x0,) = run.roles.generator.all("sample_average", [(draws, embeds)])[0]
        error = export_error(out, texts, draws.normal("z", frame.latent_shape), x0)
        say(f"exported {out}: its latents differ from the trainer's x0 by {error:.1e} (relative)")
        if error > LARGEST_EXPORT_ERROR and config.roles.generator.dtype == "fp32":
            raise RuntimeError(
                f"{out} does not reproduce the trainer's x0: {error:.1e} is above {LARGEST_EXPORT_ERROR}"
            )
    (out / EXPORTED).write_text(json.dumps({"step": checkpoint.step}))  # last: a stale or faulty export has none


def exported_step(config: RunConfig) -> int | None:
    """The step whose weights lie, whole and checked, in the run's pipeline folder."""
    path = config.path / "pipeline" / EXPORTED
    return json.loads(path.read_text())["step"] if path.exists() else None


def export_checkpoint(config: RunConfig, store: CheckpointStore, checkpoint: Checkpoint, out: Path) -> Path:
    """A diffusers pipeline folder, with its model card, of a checkpoint's moving average."""
    tensors, _ = store.read_group(checkpoint, "generator")
    weights = {name.removeprefix("ema/"): value for name, value in tensors.items() if name.startswith("ema/")}
    if not weights:
        raise UserError(f"the checkpoint of step {checkpoint.step} holds no moving average of the generator")
    one_step = one_step_of(read_frame(config.model.teacher), config.model.t_star, config.model.input)
    export_pipeline(config.model.teacher, weights, one_step, out)
    write_card(out, config, checkpoint.step)
    return out


@contextmanager
def interrupts(run: Run):
    """Ctrl-C and SIGTERM end the run after the step in hand, with a checkpoint; a second one ends it at once."""

    def stop(number, frame):
        if run.interrupted:
            raise KeyboardInterrupt
        run.interrupted = True
        run.say("stopping after this step, with a checkpoint; once more to stop at once")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_table(table) -> None:
    import rich

    rich.print(table)
