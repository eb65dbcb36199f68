"""A run's evaluation where its roles ran: in an actor on the generator's device, by the run's own reward service."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from dipp_ray.config import RunConfig
from dipp_ray.evaluation.evaluate import evaluate_run
from dipp_ray.evaluation.evaluator import Evaluator
from dipp_ray.reporting.quiet import quiet_libraries
from dipp_ray.roles.process import prepare
from dipp_ray.roles.waiting import wait_all
from dipp_ray.serving.deploy.application import replica_options
from dipp_ray.training.home import Home, as_others_see
from dipp_ray.training.roles import start_actor
from dipp_ray.training.run import Run

CALL_S = 3600.0  # the longest wait for one batch, or for one model's measures


@ray.remote(max_restarts=0)
class EvaluationActor:
    """An `Evaluator` with the threads of all roles whose work is done."""

    def __init__(self, config: RunConfig, application: str | None):
        quiet_libraries()
        roles = config.roles
        threads = sum(role.threads for role in (roles.generator, roles.score, roles.teacher))
        device = prepare(roles.generator.model_copy(update={"threads": threads}), config.run.deterministic)
        self.evaluator = Evaluator(config, device, application)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.evaluator, method)(*arguments)


class _Placed:
    """The actor with an `Evaluator`'s face: each call is waited for, and seen to be."""

    def __init__(self, config: RunConfig, actor: Any, say: Callable[[str], None]):
        self.config, self.actor, self.say = config, actor, say

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any) -> Any:
            asked = self.actor.call.remote(method, *(as_others_see(self.config, value) for value in arguments))
            return wait_all([asked], "the evaluation", CALL_S, lambda _: None)[0]

        return call


def evaluate_placed(config: RunConfig, say: Callable[[str], None], run: Run | None = None) -> dict:
    """Evaluate the finished run as `evaluate_run`, in an actor. Needs a connected Ray.

    run: that still holds its roles; its trainers are ended first, and their room is the evaluation's. None: the run has
    ended, and room like its generator's is asked for.
    """
    application = None
    if run is not None and run.session is not None:
        run.session.end_ranks()
        run.roles.end_models()
        options, application = run.session.placement.options("generator", 0), run.roles.private_application
    else:
        options = replica_options(config.roles.generator)
    here = config
    if Home(config).mirror is None:  # its folder is named whole: the actor's current folder may be another
        whole = str(Path(config.run.folder).resolve())
        here = config.model_copy(update={"run": config.run.model_copy(update={"folder": whole})})
    actor = start_actor(EvaluationActor, options, here, application)
    try:
        wait_all([actor.__ray_ready__.remote()], "the evaluation's process", config.roles.wait_s, say)
        return evaluate_run(here, say, _Placed(here, actor, say))
    finally:
        ray.kill(actor)
