"""A run's evaluation where its roles ran: in actors on its ranks' devices, by the run's own reward service."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from dipp_ray.config import RunConfig
from dipp_ray.errors import RoleFailure
from dipp_ray.evaluation.evaluate import evaluate_run
from dipp_ray.evaluation.evaluator import Evaluates, Evaluator
from dipp_ray.evaluation.measure import Units
from dipp_ray.reporting.quiet import quiet_libraries
from dipp_ray.roles.process import prepare
from dipp_ray.roles.waiting import wait_all
from dipp_ray.serving.deploy.application import replica_options
from dipp_ray.training.home import Home, as_others_see
from dipp_ray.training.plan import GROUPS
from dipp_ray.training.roles import start_actor
from dipp_ray.training.run import Run

CALL_S = 3600.0  # the longest wait for one batch, or for one model's measures
GOES_ON = "the same command goes on with the images that are missing"


@ray.remote(max_restarts=0)
class EvaluationActor:
    """An `Evaluator`; one that is alone has the threads of all roles whose work is done."""

    def __init__(self, config: RunConfig, application: str | None, alone: bool):
        quiet_libraries()
        roles = config.roles
        done = (roles.generator, roles.score, roles.teacher) if alone else (roles.generator,)
        threads = sum(role.threads for role in done)
        device = prepare(roles.generator.model_copy(update={"threads": threads}), config.run.deterministic)
        self.evaluator = Evaluator(config, device, application)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.evaluator, method)(*arguments)


class _Placed:
    """Actors with an `Evaluator`'s face: each call is waited for, and shards go to whoever is free."""

    def __init__(self, config: RunConfig, actors: list, say: Callable[[str], None]):
        self.config, self.actors, self.say = config, actors, say

    def prepare(self) -> list:
        return self._all("prepare")[0]

    def open(self, folder: str | Path) -> None:
        self._all("open", as_others_see(self.config, folder))

    def judged(self, pngs: list[bytes]) -> Units:
        return _answer(self.actors[0].call.remote("judged", pngs))

    def each(self, method: str, calls: Iterable[tuple]) -> Iterator[tuple[int, Any]]:
        left, busy = enumerate(calls), {}

        def next_to(actor: Any) -> None:
            if (call := next(left, None)) is not None:
                index, arguments = call
                busy[actor.call.remote(method, *arguments)] = index, actor

        for actor in self.actors:
            next_to(actor)
        while busy:
            (done,), _ = wait_some(list(busy))
            index, actor = busy.pop(done)
            answer = _answer(done)
            next_to(actor)
            yield index, answer

    def _all(self, method: str, *arguments: Any) -> list:
        asked = [actor.call.remote(method, *arguments) for actor in self.actors]
        return wait_all(asked, "the evaluation", CALL_S, lambda _: None, GOES_ON)


def _answer(reference: ray.ObjectRef) -> Any:
    return wait_all([reference], "the evaluation", CALL_S, lambda _: None, GOES_ON)[0]


def wait_some(references: list) -> tuple[list, list]:
    """One that is done. Raises RoleFailure after CALL_S seconds."""
    done, rest = ray.wait(references, num_returns=1, timeout=CALL_S)
    if not done:
        raise RoleFailure(f"the evaluation: none of {len(references)} shards was done within {CALL_S:g} s; {GOES_ON}")
    return done, rest


def evaluate_placed(config: RunConfig, say: Callable[[str], None], run: Run | None = None) -> dict:
    """Evaluate the finished run as `evaluate_run`, in actors. Needs a connected Ray.

    run: that still holds its roles; its trainers are ended first, and the rooms of their ranks, the generator's before
    the score model's, are the evaluation's. None: the run has ended, and room like its generator's is asked for.
    """
    config = whole(config)
    if run is None:
        with evaluators(config, say) as placed:
            return evaluate_run(config, say, placed)
    roles = run.sessions.roles
    run.session.end_ranks()
    roles.end_models()
    placement = run.session.placement
    ranks = Counter(request.role for request in placement.plan.requests)
    rooms = [placement.options(group, index) for group in GROUPS for index in range(ranks[group])]
    options = rooms[: config.evaluation.workers]
    with evaluators(config, say, options, roles.private_application) as placed:
        return evaluate_run(config, say, placed)


@contextmanager
def evaluators(
    config: RunConfig,
    say: Callable[[str], None],
    options: list[dict] | None = None,
    application: str | None = None,
) -> Iterator[Evaluates]:
    """Actors that evaluate, an `options` each; None: `evaluation.workers` with a generator's resources."""
    options = options or [replica_options(config.roles.generator)] * config.evaluation.workers
    actors = [start_actor(EvaluationActor, one, whole(config), application, len(options) == 1) for one in options]
    try:
        ready = [actor.__ray_ready__.remote() for actor in actors]
        wait_all(ready, "the evaluation's processes", config.roles.wait_s, say, GOES_ON)
        yield _Placed(config, actors, say)
    finally:
        for actor in actors:
            ray.kill(actor)


def whole(config: RunConfig) -> RunConfig:
    """With the run's folder named whole: an actor's current folder may be another."""
    if Home(config).mirror is not None:
        return config
    folder = str(Path(config.run.folder).resolve())
    return config.model_copy(update={"run": config.run.model_copy(update={"folder": folder})})
