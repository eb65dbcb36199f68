"""The run's loop between its first and its last step: train, look, save, and go on after a lost rank."""

import time
from collections.abc import Callable, Iterator

from ray.exceptions import RayError

from dipp_ray.checkpoints.store import Checkpoint, CheckpointStore
from dipp_ray.config import RunConfig
from dipp_ray.errors import CallError, RewardUnavailableError, RoleFailure, UserError
from dipp_ray.reporting.events import record_event
from dipp_ray.reporting.metrics import MetricsLog, grid_of
from dipp_ray.reporting.progress import ProgressLine
from dipp_ray.training.checks import score_checkpoint
from dipp_ray.training.controller import Controller, StepResult
from dipp_ray.training.memory import InMemory
from dipp_ray.training.saving import Saver
from dipp_ray.training.session import Committed, Session
from dipp_ray.training.sessions import Sessions
from dipp_ray.training.shared_service import changes, judge_of
from dipp_ray.training.state import RunState
from dipp_ray.training.tasks import GROUPS
from dipp_ray.training.trajectory import trajectory, trajectory_hash
from dipp_ray.training.watch import Watch

Say = Callable[[str], None]
GENERATIONS = 4  # of what the run remembers beside states in memory: two, and those on their way


class Run:
    """A training run in its folder, over one session or several. `train` is the way in."""

    def __init__(
        self,
        config: RunConfig,
        sessions: Sessions,
        store: CheckpointStore,
        say: Say,
        contents: dict[str, str] | None = None,
    ):
        """contents: of what the settings name, as `contents_of` gives them; checkpoints record it."""
        self.contents = contents or {}
        self.config, self.sessions, self.store, self.say = config, sessions, store, say
        self.states: dict[int, RunState] = {}  # after each step whose groups' state is kept in memory
        self.state = RunState()
        self.interrupted = False
        self.saver = Saver(store, config.checkpoint.keep)
        self.stopping = False  # an interrupt that was seen when the step in hand was listed
        self.moving: str | None = None  # why the session in hand gives way to another after the step that was listed

    @property
    def session(self) -> Session:
        assert self.sessions.current is not None, "a session is open"
        return self.sessions.current

    @property
    def controller(self) -> Controller:
        return self.session.controller

    def say_by(self, say: Say) -> None:
        """Tell a person by `say` from now on."""
        self.say = say
        self.sessions.say_by(say)

    def start(self, find: Callable[[], Checkpoint | None]) -> int:
        """Open a session and bring it to its first step: from the newest state that there is in memory or committed,
        as `find` finds it, or fresh. Returns the number of finished steps. Where a rank is lost meanwhile, another
        session is opened."""
        while True:
            try:
                return self._start(find)
            except RoleFailure as fault:
                self.sessions.survive(fault, self.state.next_step)

    def _start(self, find: Callable[[], Checkpoint | None]) -> int:
        state = self.sessions.open(find, self.saver.saved, list(self.states))
        self.watch = Watch(self.config, self.controller)
        if isinstance(state, InMemory):
            self.state = self.states[state.step]
        elif isinstance(state, Committed):
            self._take_up(state.checkpoint)
        else:
            self._begin()
        done = self.state.next_step
        self.states = {step: kept for step, kept in self.states.items() if step <= done}
        if self.state.reward_deviation is not None:
            self.controller.reward_deviation = self.state.reward_deviation
        return done

    def _begin(self) -> None:
        self.state = RunState(service=self.sessions.roles.service)
        self.controller.together("generator", "start")
        if self.config.init.score_checkpoint:
            self.controller.together("score", "take_weights", *score_checkpoint(self.config))
        self.controller.warm_score_up()
        if self.config.reward.standardise and self.controller.shape.rewarded:
            self.state = self.state.but(**self.controller.standardise())

    def _take_up(self, checkpoint: Checkpoint) -> None:
        self.state = RunState.from_record(checkpoint.record).but(next_step=checkpoint.step)
        self.saver.saved = checkpoint.step
        self.compare_service(self.sessions.roles.service)
        best = self.state.best
        if best and best.step == checkpoint.step:
            self.store.mark_best(best.step, best.mean)  # in case the run was killed between commit and mark

    def close(self) -> None:
        self.sessions.close()

    def compare_service(self, now: dict | None) -> None:
        """A shared service may have another sum than it had: then the run goes on, but not as the same one."""
        before = self.state.service
        if self.config.reward.shared and before and now:
            if judge_of(before) != judge_of(now):  # another model's scores are no better and no worse
                self.state = self.state.but(held_out={}, falls=0)
            if said := changes(before, now, self.config.reward.vae):
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
        self,
        done: int,
        metrics: MetricsLog,
        progress: ProgressLine,
        require_folder: Callable[[int], None],
        publish: Callable[[], None],
    ) -> int:
        """Train from step `done` to the end, or to the first checkpoint after an interrupt; returns the steps done.

        require_folder: raises at a barrier where the run's folder is no longer there. publish: sends what is new in it
        to where it lies, before the checkpoint that says so is committed.
        """
        while done < self.config.run.steps and not (self.stopping or self.gives_up):
            try:
                for step in self.stretch(done, metrics, progress, require_folder, publish):
                    done = step
                    self.sessions.finished(done)
                if self.moving is None or done >= self.config.run.steps or self.stopping:
                    continue
                self.say(f"another session from step {done} on: {self.moving}")
                record_event(self.config.path, "moved", done, self.moving)
                self.session.end_ranks()
                self.sessions.moves()
            except RoleFailure as fault:
                self.saver.commit_if_written()
                self.saver.forget()
                self.sessions.survive(fault, done)
            done = self.start(self.store.latest)  # who reads it compares checksums
            metrics.resume(done or -1)
            self.say(f"goes on from step {done} with {self.session.sizes}")
        return done

    def stretch(
        self,
        done: int,
        metrics: MetricsLog,
        progress: ProgressLine,
        require_folder: Callable[[int], None],
        publish: Callable[[], None],
    ) -> Iterator[int]:
        """Train from step `done` to the next barrier; yields the number of finished steps after each."""
        if done == 0:
            first = self.look(0)
            metrics.write(0, first, grid_of(self.config.path, 0))
            progress.update(0, first)
        began, clock = done, time.perf_counter()
        for step in self.session.run_until(done, self.ends_after):
            done = step.step + 1
            if step.last:
                require_folder(done)
            # Over the stretch so far: two steps are under way at a time, and what is between them is no one's.
            speed = self.config.data.batch_size * (done - began) / (time.perf_counter() - clock)
            looked = step.last and self.is_due(done)
            seen = self.look(done) if looked else {}
            values = step.metrics | seen | {"images_per_second": speed}
            metrics.write(done, values, grid_of(self.config.path, done) if looked else None)
            if step.last:
                publish()
                self.save_where_due(done, "best_step" in seen)
            progress.update(done, values)
            self.tell(step, speed)
            self.saver.commit_if_written()
            if self.sessions.memory.is_due(done):
                self.remember(done)
            if step.last and self.moving and self.sessions.memory.every:
                self.saver.finish(self.controller)
                self.keep(done)
            elif step.last and self.sessions.memory.lost:
                self.sessions.memory.attach(self.controller.actors, self.say)
                self.keep(done)  # what the lost one had is gone, and a fault now would cost all since the one before
            yield done

    def tell(self, step: StepResult, speed: float) -> None:
        """The step in numbers, for who watches the cluster."""
        telemetry, sizes = self.sessions.telemetry, self.session.sizes
        telemetry.add("dipp_ray_steps")
        telemetry.set("dipp_ray_step", step.step + 1)
        telemetry.set("dipp_ray_images_per_second", speed)
        actors = {"generator": sizes.generator, "score": sizes.score, "teacher": sizes.teacher, "text": 1, "reward": 1}
        telemetry.busy(step.busy, actors, self.config.data.batch_size / speed)
        telemetry.set("dipp_ray_checkpoint_seconds", self.saver.held_up)
        telemetry.set("dipp_ray_state_age_steps", step.step + 1 - max(self.saver.saved, self.sessions.memory.complete))
        if "keep_seconds" in step.metrics:
            telemetry.set("dipp_ray_keep_seconds", step.metrics["keep_seconds"])

    def keep(self, done: int) -> None:
        """At a barrier: have the state as it is now in memory, whether or not it is due."""
        self.controller.keep_now(done)
        self.remember(done)

    def remember(self, done: int) -> None:
        """What belongs to the groups' state that is kept in memory after `done` steps. One that speaks of a best model
        whose checkpoint is not there yet is not gone back to: the model would be lost, and the run would not know."""
        if self.saver.writes_best:
            return
        self.states = dict([*self.states.items(), (done, self.state.but(next_step=done))][-GENERATIONS:])

    def ends_after(self, done: int) -> bool:
        """Whether there is a barrier after `done` steps. An interrupt that comes later ends the run one step later."""
        self.stopping, self.moving = self.interrupted, self.sessions.reason_to_move()
        return self.stopping or self.moving is not None or self.sessions.memory.lost or self.is_due(done)

    def is_due(self, done: int) -> bool:
        config = self.config
        ends = done >= config.run.steps
        return ends or done % config.log.samples_every == 0 or done % config.checkpoint.every == 0

    @property
    def gives_up(self) -> bool:
        return self.state.gives_up(self.config.log.stop_patience)

    def save_where_due(self, done: int, best: bool) -> None:
        """At a barrier, where nothing is in flight. best: whether this is the best model so far."""
        last = self.stopping or done >= self.config.run.steps or self.gives_up
        last = last or (self.moving is not None and not self.sessions.memory.every)
        if last or best or done % self.config.checkpoint.every == 0:
            self.save(done, best)
            if last:
                self.saver.finish(self.controller)

    def look(self, done: int) -> dict[str, float]:
        """The sample grid and the held-out rewards, with their differences from the start and from the best before;
        `best_step` is among them where this is the best model so far, the start being one of them."""
        seen = self.watch.look(done)
        before, self.state = self.state, self.state.judged(seen.looks)
        values = seen.values | before.changes(seen.looks)
        return values | ({"best_step": done} if self.state.best != before.best else {})

    def save(self, done: int, best: bool) -> None:
        """Begin a checkpoint: both groups have finished the step and nothing is in flight."""
        self.look_at_service()
        self.state = self.state.but(next_step=done)
        record = {
            "trajectory": trajectory(self.config),
            "trajectory_hash": trajectory_hash(self.config),
            "contents": self.contents,
            "sizes": {group: self.controller.actors.count(group) for group in GROUPS},
            **self.state.to_record(),
        }
        self.saver.begin(self.controller, done, record, self.state.best if best else None)
