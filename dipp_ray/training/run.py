"""The run's loop between its first and its last step: train, look, save."""

import time
from collections.abc import Callable

from ray.exceptions import RayError

from dipp_ray.checkpoints.store import Checkpoint, CheckpointStore
from dipp_ray.config import RunConfig
from dipp_ray.errors import CallError, RewardUnavailableError, RoleFailure, UserError
from dipp_ray.reporting.metrics import MetricsLog, grid_of
from dipp_ray.reporting.progress import ProgressLine
from dipp_ray.training.checks import score_checkpoint
from dipp_ray.training.controller import Controller
from dipp_ray.training.roles import Roles
from dipp_ray.training.shared_service import changes, judge_of
from dipp_ray.training.state import RunState
from dipp_ray.training.tasks import GROUPS
from dipp_ray.training.trajectory import trajectory, trajectory_hash
from dipp_ray.training.watch import Watch

Say = Callable[[str], None]


class Run:
    """A training run in its folder. `train` is the way in."""

    def __init__(
        self,
        config: RunConfig,
        roles: Roles,
        controller: Controller,
        store: CheckpointStore,
        say: Say,
        contents: dict[str, str] | None = None,
    ):
        """contents: of what the settings name, as `contents_of` gives them; checkpoints record it."""
        self.contents = contents or {}
        self.config, self.roles, self.controller, self.store, self.say = config, roles, controller, store, say
        self.watch = Watch(config, controller)
        self.state = RunState(service=roles.service)
        self.interrupted = False
        self.stopping = False  # an interrupt that was seen when the step in hand was listed

    def say_by(self, say: Say) -> None:
        """Tell a person by `say` from now on."""
        self.say = say
        self.controller.say_by(say)

    def start(self, checkpoint: Checkpoint | None) -> int:
        """Bring both groups to their first step, fresh or from a checkpoint; returns the number of finished steps."""
        if checkpoint is not None:
            self._restore(checkpoint)
        else:
            self.controller.together("generator", "start")
            if self.config.init.score_checkpoint:
                self.controller.together("score", "take_weights", *score_checkpoint(self.config))
            self.controller.warm_score_up()
            if self.config.reward.standardise and self.controller.shape.rewarded:
                self.state = self.state.but(**self.controller.standardise())
        if self.state.reward_deviation is not None:
            self.controller.reward_deviation = self.state.reward_deviation
        return self.state.next_step

    def _restore(self, checkpoint: Checkpoint) -> None:
        for group in GROUPS:
            self.controller.together(group, "restore", self.store.url, checkpoint.step)
        self.state = RunState.from_record(checkpoint.record).but(next_step=checkpoint.step)
        self.compare_service(self.roles.service)
        best = self.state.best
        if best and best.step == checkpoint.step:
            self.store.mark_best(best.step, best.mean)  # in case the run was killed between commit and mark

    def compare_service(self, now: dict | None) -> None:
        """A shared service may have another sum than it had: then the run goes on, but not as the same one."""
        before = self.state.service
        if self.config.reward.shared and before and now:
            if judge_of(before) != judge_of(now):  # another model's scores are no better and no worse
                self.state = self.state.but(held_out={}, falls=0)
            if said := changes(before, now):
                kept = "; reward_deviation stays as it was measured" if self.state.reward_deviation is not None else ""
                self.say(f"the reward service changed: {', '.join(said)}; the run goes on with it as it is now{kept}")
        self.state = self.state.but(service=now)

    def look_at_service(self) -> None:
        """A checkpoint records the service as it is now, and a person is told what changed while the run trained."""
        if self.config.reward.shared:
            try:
                (now,) = self.controller.together("reward", "describe")
            except (RewardUnavailableError, UserError, CallError, RoleFailure, RayError) as error:
                # The steps that are done are saved all the same.
                self.say(f"what the reward service is now could not be asked: {error}")
                return
            self.compare_service(now)

    def loop(
        self, done: int, metrics: MetricsLog, progress: ProgressLine, require_folder: Callable[[int], None]
    ) -> int:
        """Train from step `done` to the end, or to the first checkpoint after an interrupt; returns the steps done.

        require_folder: raises at a barrier where the run's folder is no longer there.
        """
        if done == 0:
            first = self.look(0)
            metrics.write(0, first, grid_of(self.config.path, 0))
            progress.update(0, first)
        while done < self.config.run.steps and not (self.stopping or self.gives_up):
            began, clock = done, time.perf_counter()
            for step in self.controller.steps(done, self.ends_after):
                done = step.step + 1
                if step.last:
                    require_folder(done)
                # Over the stretch so far: two steps are under way at a time, and what is between them is no one's.
                speed = self.config.data.batch_size * (done - began) / (time.perf_counter() - clock)
                values = step.metrics | (self.at_barrier(done) if step.last else {}) | {"images_per_second": speed}
                looked = step.last and self.is_due(done)
                metrics.write(done, values, grid_of(self.config.path, done) if looked else None)
                progress.update(done, values)
        return done

    def ends_after(self, done: int) -> bool:
        """Whether there is a barrier after `done` steps. An interrupt that comes later ends the run one step later."""
        self.stopping = self.interrupted
        return self.stopping or self.is_due(done)

    def is_due(self, done: int) -> bool:
        config = self.config
        ends = done >= config.run.steps
        return ends or done % config.log.samples_every == 0 or done % config.checkpoint.every == 0

    @property
    def gives_up(self) -> bool:
        return self.state.gives_up(self.config.log.stop_patience)

    def at_barrier(self, done: int) -> dict[str, float]:
        """Nothing is in flight: look and save where they are due; returns what was seen."""
        seen = self.look(done) if self.is_due(done) else {}
        best = "best_step" in seen
        last = self.stopping or done >= self.config.run.steps or self.gives_up
        if last or best or done % self.config.checkpoint.every == 0:
            self.save(done)
            if best and self.state.best:
                self.store.mark_best(self.state.best.step, self.state.best.mean)
            self.store.prune(self.config.checkpoint.keep)
        return seen

    def look(self, done: int) -> dict[str, float]:
        """The sample grid and the held-out rewards, with their differences from the start and from the best before;
        `best_step` is among them where this is the best model so far, the start being one of them."""
        seen = self.watch.look(done)
        before, self.state = self.state, self.state.judged(seen.looks)
        values = seen.values | before.changes(seen.looks)
        return values | ({"best_step": done} if self.state.best != before.best else {})

    def save(self, done: int) -> None:
        """Commit a checkpoint: both groups have finished the step and nothing is in flight."""
        self.look_at_service()
        self.state = self.state.but(next_step=done)
        shares = [
            share for group in GROUPS for share in self.controller.together(group, "write_share", self.store.url, done)
        ]
        record = {
            "trajectory": trajectory(self.config),
            "trajectory_hash": trajectory_hash(self.config),
            "contents": self.contents,
            "sizes": {group: self.controller.actors.count(group) for group in GROUPS},
            **self.state.to_record(),
        }
        self.store.commit(done, record, [file for share in shares for file in share])
