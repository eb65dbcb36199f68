"""A session: the trained groups from their rendezvous on, at one size, until they end or a rank is lost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ray.exceptions import RayTaskError

from dipp_ray.checkpoints.record import Checkpoint
from dipp_ray.config import RunConfig
from dipp_ray.data.embeddings import NULL
from dipp_ray.data.prompts import Prompts
from dipp_ray.errors import RoleFailure
from dipp_ray.roles.generator import GeneratorRank
from dipp_ray.roles.group import Group
from dipp_ray.roles.score import ScoreRank
from dipp_ray.roles.waiting import is_consequence, wait_all
from dipp_ray.training.controller import Controller, StepResult
from dipp_ray.training.faults import GOES_ON, said_by
from dipp_ray.training.memory import StateMemory
from dipp_ray.training.placement import Placement, reserve
from dipp_ray.training.plan import requests
from dipp_ray.training.roles import Roles, start_roles
from dipp_ray.training.sizes import Sizes, allowed_sizes
from dipp_ray.training.spares import Spares
from dipp_ray.training.tasks import GROUPS, Role

RANKS: dict[Role, Any] = {"generator": GeneratorRank, "score": ScoreRank}


class HeldState(Protocol):
    """Where the state of both groups after a step lies."""

    @property
    def step(self) -> int: ...

    def asked(self, group: Role) -> tuple:
        """The method of the group's ranks that takes it up, and its arguments."""
        ...


@dataclass(frozen=True)
class Committed:
    """The state in a committed checkpoint of the store at `url`."""

    checkpoint: Checkpoint
    url: str

    @property
    def step(self) -> int:
        return self.checkpoint.step

    def asked(self, group: Role) -> tuple:
        return "restore", self.url, self.step

    def __str__(self) -> str:
        return f"the checkpoint of step {self.step}"


class Session:
    """Two groups that have met, and the controller that has them work. `open` is the way in."""

    def __init__(self, groups: dict[Role, Group], placement: Placement, controller: Controller):
        self.groups, self.placement, self.controller = groups, placement, controller

    @staticmethod
    def open(
        config: RunConfig,
        roles: Roles,
        placement: Placement,
        state: HeldState | None,
        memory: StateMemory,
        spares: Spares,
        prompts: Prompts,
        say: Callable[[str], None],
    ) -> "Session":
        """Start the ranks in the room that is held for them, and bring them to `state`; None: as they are made.

        Where that fails the ranks are ended, and their room stays held. Raises RoleFailure where a process is lost or
        does not answer.
        """
        groups: dict[Role, Group] = {}
        nodes: dict[Role, list[str]] = {}
        try:
            say("starting generator and score model")
            for role in GROUPS:
                ranks = [request for request in placement.plan.requests if request.role == role]
                options = [placement.options(role, index) for index in range(len(ranks))]
                nodes[role] = [placement.plan.where[role, index].id for index in range(len(ranks))]
                ready = [spares.take(role, node) for node in nodes[role]]
                groups[role] = Group(RANKS[role], config, options, say, ready)
            for group in groups.values():
                group.meet()
            roles.await_ready(config, say)
            null: Any = NULL
            if config.data.embeddings is None:
                null, encoded = roles.text.encode.remote([""])
                wait_all([encoded], "the null prompt's embeddings", config.roles.wait_s, say)
            controller = Controller(config, roles, groups, null, memory, prompts, say)
            session = Session(groups, placement, controller)
            memory.attach(controller.actors, say)
            if state is not None:
                say(f"taking up {state}")
                for role in GROUPS:
                    controller.together(role, *state.asked(role))
            for role in GROUPS:
                spares.refill(role, RANKS[role], nodes[role])
        except BaseException as error:
            for group in groups.values():
                group.kill()
            if isinstance(error, RayTaskError) and is_consequence(error):  # a rank was lost while they met
                raise RoleFailure(f"the ranks did not meet: {said_by(error)}; {GOES_ON}") from None
            raise
        return session

    @property
    def sizes(self) -> Sizes:
        actors = self.controller.actors
        return Sizes(actors.count("generator"), actors.count("score"), actors.count("teacher"))

    def run_until(self, first: int, ends_after: Callable[[int], bool]) -> Iterator[StepResult]:
        """Train from step `first` to the barrier that `ends_after` asks for: see `Controller.steps`."""
        return self.controller.steps(first, ends_after)

    def end_ranks(self) -> None:
        """End them at once, whatever they are busy with; their room stays held. Once or often."""
        for group in self.groups.values():
            group.kill()


@contextmanager
def only_session(config: RunConfig, prompts: Prompts, say: Callable[[str], None]) -> Iterator[Session]:
    """One session with all that it needs, as the networks are made: no checkpoint, no recovery."""
    choices = [requests(config, sizes) for sizes in allowed_sizes(config)]
    room, rest = reserve(choices, config.roles.wait_s, say).split(GROUPS)
    roles = start_roles(config, rest, say)
    try:
        session = Session.open(config, roles, room, None, StateMemory(config), Spares(config), prompts, say)
        try:
            yield session
        finally:
            session.end_ranks()
    finally:
        room.release()
        roles.stop()
