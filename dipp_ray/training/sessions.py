"""The sessions of a run, one after the other: each as large as the cluster can give, from the newest state there is."""

import time
from collections.abc import Callable
from dataclasses import replace

from dipp_ray.checkpoints.store import Checkpoint, CheckpointStore
from dipp_ray.config import RunConfig
from dipp_ray.data.prompts import Prompts
from dipp_ray.errors import RoleFailure, UserError
from dipp_ray.reporting.events import record_event
from dipp_ray.reporting.pace import Pace
from dipp_ray.reporting.telemetry import Telemetry
from dipp_ray.roles.waiting import LOW_ON_MEMORY, SAY_EVERY_S, UNREACHABLE
from dipp_ray.training.attempts import Attempts
from dipp_ray.training.faults import GOES_ON, MORE_MEMORY
from dipp_ray.training.growth import GROWTH, Surroundings
from dipp_ray.training.memory import StateMemory
from dipp_ray.training.placement import GRANT_S, Placement, cluster_nodes, living_nodes, reserve
from dipp_ray.training.plan import Request, best_plan, group_requests
from dipp_ray.training.roles import Roles
from dipp_ray.training.session import Committed, HeldState, Session
from dipp_ray.training.sizes import allowed_sizes
from dipp_ray.training.spares import Spares


class Sessions:
    """room: held for the ranks of a session, the first one's to begin with; given up for that of the next one."""

    def __init__(
        self,
        config: RunConfig,
        roles: Roles,
        room: Placement,
        prompts: Prompts,
        store: CheckpointStore,
        say: Callable[[str], None],
    ):
        self.config, self.roles, self.prompts, self.store, self.say = config, roles, prompts, store, say
        self.room, self.taken = room, False  # whether a session has begun in it
        self.current: Session | None = None
        self.surroundings: Surroundings | None = None
        self.attempts = Attempts(config.roles.failures)
        self.memory, self.spares = StateMemory(config), Spares(config)
        self.ranks, self.grows = 0, False
        self.telemetry = Telemetry(config.run.name)
        self.broke: tuple[float, int] | None = None  # when a fault was seen, and the steps that were finished then

    def say_by(self, say: Callable[[str], None]) -> None:
        self.say = say
        if self.current:
            self.current.controller.say_by(say)

    def open(self, find: Callable[[], Checkpoint | None], saved: int, remembered: list[int]) -> HeldState | None:
        """Open a session and bring its ranks to the newest state: in memory, of one of the `remembered` steps, or
        committed. Returns it; None: the ranks are as they are made.

        find: looks for the newest committed checkpoint, which is known to be that of step `saved`; not called where
        what is in memory is as new, so that no storage is read then, nor need be there.

        Raises RoleFailure where a process is lost meanwhile, or where there is no room within roles.wait_s.
        """
        self.roles.pool.withdraw()  # what comes free now is the ranks'
        try:
            if self.current is not None:
                self.roles.move(self.config, self.say)
            if self.taken:
                self.room = self._room_for_another()
            self.taken = True
        except UserError as error:
            raise NoRoom(f"{error}\n{GOES_ON}") from None
        state = self._newest(find, saved, remembered)
        self.current = Session.open(
            self.config, self.roles, self.room, state, self.memory, self.spares, self.prompts, self.say
        )
        self.memory.go_back(state.step if state else 0)
        self._look_around(self.current)
        return state

    def _newest(self, find: Callable[[], Checkpoint | None], saved: int, remembered: list[int]) -> HeldState | None:
        kept = self.memory.newest(remembered)
        if kept is not None and kept.step >= saved:
            return kept
        checkpoint = find()
        if checkpoint is None or (kept is not None and kept.step >= checkpoint.step):
            return kept
        return Committed(checkpoint, self.store.url)

    def _room_for_another(self) -> Placement:
        """Room for the largest groups that the cluster can give now; the room held so far is given up for it."""
        if self.surroundings:
            self.surroundings.demand.give_to(self.room)
        teachers = len(self.roles.pool.members)
        sizes = dict.fromkeys(replace(sizes, teacher=teachers) for sizes in allowed_sizes(self.config))
        choices = [group_requests(self.config, size) for size in sizes]
        self._take_from_the_pool(choices)
        return reserve(choices, self.config.roles.wait_s, self.say, instead_of=self.room)

    def _take_from_the_pool(self, choices: list[list[Request]]) -> None:
        """Where none of the choices fits, teachers that the pool may do without go, as many as make room for one."""
        pool, given_up, leaving = self.roles.pool, [self.room], []
        for index in [*pool.spare(), None]:
            found = best_plan(choices, cluster_nodes(given_up))
            if found.possible and not found.waits:
                break
            if index is None:
                return  # it would be in vain
            given_up.append(pool.room_of(index))
            leaving.append(index)
        for index in leaving:
            self.say(f"teacher {index} makes room for ranks")
            pool.give_up(index)

    def _look_around(self, session: Session) -> None:
        before, self.ranks = self.ranks, session.sizes.ranks
        grew_in_vain = self.grows and self.ranks <= before  # Ray had room, and the plan did not: it would be so again
        self.grows = False
        if self.surroundings:
            self.surroundings.close()
        placements = [session.placement, self.roles.placement]
        self.surroundings = Surroundings(self.config, session.sizes, placements, asks=not grew_in_vain)
        self.roles.pool.ranks_lack = self.surroundings.demand.lacking

    def reason_to_move(self) -> str | None:
        """Why the session in hand is to give way to another at the next boundary, or None."""
        reason = self.surroundings.reason_to_move() if self.surroundings else None
        self.grows = reason == GROWTH
        if self.surroundings:
            self.memory.leave(self.surroundings.leaving)
        return reason

    def survive(self, fault: RoleFailure, done: int) -> None:
        """End what is left of the session that broke after `done` steps. Raises `fault` after too many in a row."""
        self.broke = self.broke or (time.monotonic(), done)
        done = self.broke[1]
        if self.current:
            self.current.end_ranks()
        lost_node = self._lost_node(fault)
        reason = str(fault).removesuffix(f"; {GOES_ON}")
        record_event(self.config.path, "lost node" if lost_node else "fault", done, reason)
        if isinstance(fault, NoRoom):
            raise fault
        starved_at = self.current.sizes if self.current and LOW_ON_MEMORY in reason else None
        if lost_node:
            self._preempted()
        elif not self.attempts.again(starved_at):
            often = f"; memory ran out {self.attempts.starved[starved_at]} times with {starved_at}: {MORE_MEMORY}"
            raise RoleFailure(f"{reason}{often}; {GOES_ON}") if starved_at else fault
        self.say(f"recovering from a fault after step {done}: {reason} ({self.attempts})")

    def moves(self) -> None:
        """The session in hand has given way, for the reason that was told."""
        if not self.grows:
            self._preempted()

    def _preempted(self) -> None:
        self.attempts.preempted()
        self.telemetry.add("dipp_ray_preemptions")

    def _lost_node(self, fault: RoleFailure) -> bool:
        """Whether a node of the session's is gone. Of a process that cannot be reached Ray knows that only later, and
        until then would have ranks placed there."""
        pace, patience = Pace(SAY_EVERY_S, first_s=2.0), GRANT_S if UNREACHABLE in str(fault) else 0.0
        while not (lost := self.room.node_ids() - living_nodes()) and pace.elapsed < patience:
            if pace.due():
                self.say(
                    f"waiting for Ray to say whether a node is lost, {pace.elapsed:.0f} of {patience:.0f} s so far"
                )
            time.sleep(0.2)
        return bool(lost)

    def finished(self, done: int) -> None:
        """One more step is finished."""
        self.attempts.finished(done)
        if self.broke is not None and self.current is not None:
            seconds, lost = time.monotonic() - self.broke[0], self.broke[1] - (done - 1)
            self.broke = None
            told = f"{lost} steps lost, {seconds:.1f} s from the fault to the next finished step"
            record_event(self.config.path, "recovered", done, told, steps_lost=lost, seconds=round(seconds, 3))
            self.say(f"recovered: {told}")
            self.telemetry.add("dipp_ray_recoveries")
            self.telemetry.add("dipp_ray_steps_lost", lost)
            self.telemetry.set("dipp_ray_recovery_seconds", seconds)

    def close(self) -> None:
        """End the session, if one is open, and give all room back."""
        if self.surroundings:
            self.surroundings.close()
        if self.current:
            self.current.end_ranks()
            self.current = None
        self.room.release()
        self.spares.close()
        self.memory.close()


class NoRoom(RoleFailure):
    """The cluster has no room for the smallest groups that the run may have."""
