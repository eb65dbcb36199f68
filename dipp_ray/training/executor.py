"""Runs the list of `tasks.py` on whatever actors there are: one loop that waits on everything outstanding at once.

A task goes out as soon as the one before it on its rank is out and all that it needs is out too, or, where it is
gated, is known to be good: results that are still to come travel as references. So what a rank is called with, and in
which order, is the list's alone, whatever completes first. No Ray here: `Actors` is what is asked of it.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from dipp_ray.errors import TOLD, RoleFailure
from dipp_ray.training.actor_protocol import Actors, Send, TaskResult
from dipp_ray.training.away import Away
from dipp_ray.training.faults import ActorLost, broke_off, died, named, overdue, silent, stranger_died, work_of
from dipp_ray.training.pulse import EVERY_S, Pulse
from dipp_ray.training.tasks import GROUPS, Key, Role, Task

SILENT_S = 3.0  # a process that runs gives a sign of life within so long
LOST_NODE_S = 60.0  # until then Ray has noticed that a node is gone, by its default settings too
SAY_AFTER_S, SAY_EVERY_S = 2.0, 10.0
LATE = 3.0  # times the longest so far of its kind, after which a task is late; one of a new kind is after SAY_EVERY_S


@dataclass(frozen=True)
class Stamps:
    """Seconds on the driver's clock: when all that a task waits for had ended, when it began, when it ended."""

    could_begin: float
    began: float
    ended: float


@dataclass(frozen=True)
class Finished:
    task: Task
    report: Any
    reference: Any | None
    stamps: Stamps


@dataclass
class _Listed:
    task: Task
    send: Send
    blockers: set[tuple[str, Key]]  # events that must happen before it may go out
    unended: set[Key]  # tasks that must have ended before it could begin
    could_begin: float | None = None
    index: int = 0
    answer: TaskResult | None = None


class Executor:
    """timeout_s: the longest that one task may take from when it could have begun. heartbeat_s: the longest that an
    actor may be silent. say: told what is waited for. away_s: the longest that a shared reward service may be away."""

    def __init__(
        self,
        actors: Actors,
        timeout_s: float,
        heartbeat_s: float,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        away_s: float = 0.0,
    ):
        self.actors, self.timeout_s, self.say, self.clock = actors, timeout_s, say, clock
        self.away = Away(away_s, lambda text: self.say(text))
        self.listed: dict[Key, _Listed] = {}  # until they have ended
        self.finished: dict[Key, Finished] = {}
        self.out: dict[Any, Key] = {}  # report -> task, in the order in which they were sent
        self.busy: Counter = Counter()  # (role, index) -> tasks that are out
        self.idle_since: dict[tuple[Role, int], float] = {}  # when its last task ended
        self.pulse = Pulse(actors, heartbeat_s, clock)
        self.longest: dict[tuple[Role, str], float] = {}  # (role, action) -> seconds that one took
        self.moved = self.said = clock()

    def add(self, tasks: Iterable[Task], send: Send) -> None:
        """List tasks, each after all that it waits for, and send what can go. `send` makes the call of each."""
        now = self.clock()
        going: deque[_Listed] = deque()
        if not self.listed:
            self.moved = self.said = now
        for task in tasks:
            waits = {*task.needs, *([task.after] if task.after else [])}
            gone = [key for key in task.needs if key not in self.listed and key not in self.finished]
            if gone:
                raise ValueError(f"{task.key} needs {gone[0]}, which is neither listed nor at hand")
            blockers = {("good" if task.gated and key in task.needs else "out", key) for key in waits}
            entry = _Listed(
                task, send, {event for event in blockers if not self._happened(event)}, waits & self.listed.keys()
            )
            if not entry.unended:
                entry.could_begin = now
            self.listed[task.key] = entry
            if not entry.blockers:
                going.append(entry)
                self._send(going)

    def finish(self, step: int) -> dict[Key, Finished]:
        """Run until every listed task of `step` has ended; returns them sorted by key, and forgets their results.

        Raises RoleFailure that names a lost, silent or overdue rank, or what a role raised.
        """
        while any(key.step == step for key in self.listed):
            self._collect()
        return {key: self.finished.pop(key) for key in sorted(self.finished) if key.step == step}

    # -- sending -----------------------------------------------------------------------------------------------------

    def _happened(self, event: tuple[str, Key]) -> bool:
        kind, key = event
        return key not in self.listed or (kind == "out" and self.listed[key].answer is not None)

    def _send(self, going: deque[_Listed]) -> None:
        while going:
            entry = going.popleft()
            task = entry.task
            entry.index = task.rank if task.rank is not None else self._least_busy(task.role)
            self._ask(entry)
            going.extend(self._unblocked(("out", task.key)))

    def _ask(self, entry: _Listed) -> None:
        task = entry.task
        entry.answer = entry.send(task, entry.index, {key: self._answer(key) for key in task.needs})
        self.out[entry.answer.report] = task.key
        self.busy[task.role, entry.index] += 1

    def _answer(self, key: Key) -> TaskResult:
        if key in self.finished:
            return TaskResult(self.finished[key].reference, None)
        answer = self.listed[key].answer
        assert answer is not None, f"{key} is needed before it was sent"
        return answer

    def _least_busy(self, role: Role) -> int:
        return min(self.actors.indices(role), key=lambda index: (self.busy[role, index], index))

    def _unblocked(self, event: tuple[str, Key]) -> list[_Listed]:
        free = []
        for entry in self.listed.values():
            if event in entry.blockers:
                entry.blockers.discard(event)
                if not entry.blockers:
                    free.append(entry)
        return free

    # -- collecting --------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Take what has ended, at least one task's or after a while none, and send what that frees."""
        self.actors.follow(self.say)
        ended = self.actors.wait([*self.out, *self.pulse.beats], EVERY_S)
        now = self.clock()
        moved = False
        for report in ended:
            if report in self.pulse.beats:
                self._take_beat(report)
            else:
                self._take(report, now)
                moved = True
        self.pulse.ask(self._can_beat)
        for who in self.pulse.silent():
            self._hangs(*who)
        if moved:
            self.moved = self.said = now
        else:
            self._look_at_the_late(now)

    def _take(self, report, now: float) -> None:
        entry = self.listed[self.out[report]]
        key, who = entry.task.key, (entry.task.role, entry.index)
        took = 0.0 if entry.could_begin is None else now - self._since(entry)
        try:
            result = self.actors.result(report)
        except Exception as error:
            gone = isinstance(error, ActorLost) and self._is_gone(*who)
            if gone or self.away.asks_again(error, now - took, now):
                self._ended(report, who, now)
                entry.could_begin = now
                entry.index = self._least_busy(entry.task.role) if gone else entry.index
                self._ask(entry)  # what needs its answer is gated, and waits on
                return
            try:
                self._blame(error, entry)
            finally:  # what failed has ended too: who goes on in spite of it does not meet it again
                self._ended(report, who, now)
                del self.listed[key]
        self._ended(report, who, now)
        del self.listed[key]
        if entry.task.role == "reward":
            self.away.answered(now)
        could = entry.could_begin if entry.could_begin is not None else now
        began = max(could, now - getattr(result, "seconds", 0.0))
        assert entry.answer is not None
        self.finished[key] = Finished(entry.task, result, entry.answer.reference, Stamps(could, began, now))
        kind = entry.task.role, key.action
        self.longest[kind] = max(self.longest.get(kind, 0.0), took)
        for other in self.listed.values():
            other.unended.discard(key)
            if not other.unended and other.could_begin is None:
                other.could_begin = now
        self._send(deque(self._unblocked(("good", key))))

    def _ended(self, report, who: tuple[Role, int], now: float) -> None:
        del self.out[report]
        self.busy[who] -= 1
        self.idle_since[who] = now

    def _take_beat(self, report) -> None:
        """An actor that dies while it has nothing to do is seen so, and not when it is next needed."""
        who = self.pulse.answered(report)
        try:
            self.actors.result(report)
        except ActorLost as lost:
            if not self._is_gone(*who):
                raise self._failure(lost, *who) from None

    def _is_gone(self, role: Role, index: int) -> bool:
        """Whether a stateless actor has been given up: others of its role answer in its place."""
        return role not in GROUPS and index not in self.actors.indices(role)

    def _hangs(self, role: Role, index: int) -> None:
        """A rank that hangs is lost. A stateless actor is ended, and another takes its place and its tasks."""
        if role in GROUPS:
            raise silent(role, index, self._running(role, index))
        if not self._is_gone(role, index) and self.actors.restart(role, index):
            self.say(f"{named(role, index)} does not respond: its process is ended, and another takes its place")

    def _look_at_the_late(self, now: float) -> None:
        running = [entry for entry in self.listed.values() if entry.answer and entry.could_begin is not None]
        if not running:
            raise AssertionError(f"nothing runs, yet these have not ended: {[*self.listed]}")
        late = min(running, key=self._since)
        waited = now - self._since(late)
        if waited > self.timeout_s:
            mates = range(self.actors.count(late.task.role)) if late.task.role in GROUPS else ()
            hung = next(iter(self._silent([(late.task.role, index) for index in mates])), None)
            raise hung if hung else overdue(late.task.role, late.index, late.task, self.timeout_s)
        if now - self.moved < SAY_AFTER_S or (self.said != self.moved and now - self.said < SAY_EVERY_S):
            return
        slow = [entry for entry in running if now - self._since(entry) >= self._patience(entry.task)]
        for late in sorted(slow, key=self._since)[:1]:
            self.said, waited = now, now - self._since(late)
            self.say(f"waiting for {named(late.task.role, late.index)}: {work_of(late.task)}, {waited:.0f} s so far")

    def _patience(self, task: Task) -> float:
        """Seconds that a task may take before a person is told: what such ones take is no news."""
        return max(SAY_AFTER_S, LATE * self.longest.get((task.role, task.key.action), SAY_EVERY_S / LATE))

    def _since(self, entry: _Listed) -> float:
        """When the task began at the latest: all that it waits for had ended, and what was before it on its actor."""
        assert entry.could_begin is not None
        return max(entry.could_begin, self.idle_since.get((entry.task.role, entry.index), entry.could_begin))

    def _silent(self, ranks: Iterable[tuple[Role, int]]) -> list[RoleFailure]:
        """About those of the ranks whose process does not run, though nobody knows it to be dead."""
        beats = {self.actors.heartbeat(*rank): rank for rank in ranks if self._can_beat(*rank)}
        until = self.clock() + SILENT_S
        while beats and (left := until - self.clock()) > 0:
            for report in self.actors.wait(list(beats), left):
                beats.pop(report)
        return [silent(*rank, self._running(*rank)) for rank in beats.values()]

    def _can_beat(self, role: Role, index: int, ended: Collection[Key] = ()) -> bool:
        """Ray gives an actor its calls in order: behind one whose arguments are not there yet, silence says nothing."""
        return not any(
            key in self.listed and key not in ended
            for entry in self.listed.values()
            if (entry.task.role, entry.index) == (role, index) and entry.answer
            for key in entry.task.needs
        )

    def _running(self, role: Role, index: int) -> Task | None:
        """What it is at, or None."""
        for entry in self.listed.values():
            if (entry.task.role, entry.index) == (role, index) and entry.answer and entry.could_begin is not None:
                return entry.task
        return None

    # -- what went wrong ---------------------------------------------------------------------------------------------

    def _blame(self, error: Exception, entry: _Listed) -> NoReturn:
        """Raise what explains `error`, which the task of `entry` ended with.

        A survivor's broken collective and an argument that was lost are consequences: until every rank has given a sign
        of life, a death is looked for that explains them.
        """
        role, index = entry.task.role, entry.index
        if isinstance(error, ActorLost):
            raise self._failure(error, role, index) from None
        if isinstance(error, TOLD):
            raise error
        if self.actors.is_consequence(error):
            self._look_for_a_death(entry)
            raise broke_off(role, index, entry.task, error)
        error.add_note(f"raised by {named(role, index)} in {work_of(entry.task)}")
        raise error

    def _look_for_a_death(self, entry: _Listed) -> None:
        ranks = [(role, index) for role in GROUPS for index in range(self.actors.count(role))]
        beats = {self.actors.heartbeat(*rank): rank for rank in ranks}
        watched = {report: key for report, key in self.out.items() if self.listed[key] is not entry}
        ended: set[Key] = set()
        until = self.clock() + LOST_NODE_S
        while beats and (left := until - self.clock()) > 0:
            for report in self.actors.wait([*beats, *watched], left):
                if report in beats:
                    who = beats.pop(report)
                else:
                    key = watched.pop(report)
                    who = self.listed[key].task.role, self.listed[key].index
                    ended.add(key)
                try:
                    self.actors.result(report)
                except ActorLost as lost:
                    raise self._failure(lost, *who) from None
                except TOLD:
                    raise
                except Exception:  # one more that broke off: a consequence too, or the same fault again
                    continue
        for rank in beats.values():
            if self._can_beat(*rank, ended):
                raise silent(*rank, self._running(*rank))

    def _failure(self, lost: ActorLost, role: Role, index: int) -> RoleFailure:
        """The sentence about a death. It belongs to the actor that Ray names, which may be another than was asked:
        what died may have held an argument."""
        if lost.role is None:
            return stranger_died(role, index, self._running(role, index), lost.reason)
        return died(lost.role, lost.index, self._running(lost.role, lost.index), lost.reason)
