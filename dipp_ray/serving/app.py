"""The reward service as a Ray Serve application: one ingress, one deployment for each reward model."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import ray
from pydantic_core import to_jsonable_python
from ray import serve
from ray.serve.schema import ApplicationStatus

from dipp_ray.config import RoleSection
from dipp_ray.errors import UserError
from dipp_ray.models.vae_folder import find_vae
from dipp_ray.reporting.pace import Pace
from dipp_ray.reporting.quiet import SERVE_LOGGING
from dipp_ray.rewards.loading import check_term, is_differentiable, reward_class
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.serving.config import LimitsSection, QueueSection, ServedModel, ServiceConfig
from dipp_ray.serving.ingress import IngressSettings, Rewards
from dipp_ray.serving.model import RewardModel
from dipp_ray.serving.tokens import read_tokens
from dipp_ray.settings import load_settings, validate

INGRESS = "Rewards"  # no model is called so: their names begin with a small letter
VARIABLE = "DIPP_RAY_SERVICE"
ONGOING_CALLS = 10_000  # of the ingress: its own queue bounds them
AHEAD = 2  # batches for each replica: one that is computed, one that is already there
# glibc reads these when a process starts. It would give large blocks back to the system at once, and a batch's
# activations would be gigabytes of fresh pages each time.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}
LONGEST_PROMPT = 1_000_000  # of a private service: its run has read the prompts already
POLL_S, SAY_EVERY_S = 0.1, 10.0
FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
Say = Callable[[str], None]


def build(args: dict) -> serve.Application:
    """The application of a Serve config file: `args` is a ServiceConfig. Raises UserError for a wrong one.

    The terms of the sum and the tokens are the ingress's user_config; a Serve config may override that, and a change
    of it alone restarts nothing.
    """
    config = validate(args, ServiceConfig, "application args")
    check_service(config)
    return application(config)


def __getattr__(name: str) -> serve.Application:
    """`dipp_ray.serving.app:app`, for `serve build`: the application of the YAML file that DIPP_RAY_SERVICE names."""
    if name != "app":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    if not os.environ.get(VARIABLE):
        raise UserError(f"set {VARIABLE} to the YAML configuration of the service")
    config = load_settings(os.environ[VARIABLE], [], ServiceConfig)
    check_service(config)
    return application(config)


def application(config: ServiceConfig) -> serve.Application:
    """One deployment a model and the ingress in front. Every node that may run a replica must see the folders."""
    settings = IngressSettings(
        config.name,
        config.batch_rows,
        config.deterministic,
        config.optional_wait_s,
        most_replicas(config),
        find_vae(config.vae).latent_channels if config.vae else None,
        {model.name: model.model for model in config.models},
        tuple(model.name for model in config.models if not is_differentiable(reward_class(model.term))),
        config.limits,
        config.queue,
    )
    models = {model.name: model_deployment(model, config) for model in config.models}
    ingress = serve.deployment(
        serve.ingress()(Rewards),
        name=INGRESS,
        num_replicas=1,
        max_ongoing_requests=ONGOING_CALLS,
        ray_actor_options={"num_cpus": 0},
        user_config=user_config(config),
        logging_config=SERVE_LOGGING,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=config.shutdown_s,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return _versioned(ingress, settings, sorted(models)).bind(settings, models)


def most_replicas(config: ServiceConfig) -> int:
    return max(model.most_replicas for model in config.models)


def model_deployment(model: ServedModel, config: ServiceConfig) -> serve.Application:
    role = model.role
    actor: dict = {"num_cpus": role.cpus, "num_gpus": role.gpus}
    if role.accelerator:
        actor["accelerator_type"] = role.accelerator
    if role.resources:
        actor["resources"] = role.resources
    if role.labels:
        actor["label_selector"] = role.labels
    if not role.gpus:
        actor["runtime_env"] = _environment()
    scaled = isinstance(model.replicas, tuple)
    deployment = serve.deployment(
        RewardModel,
        name=model.name,
        num_replicas=None if scaled else model.replicas,
        # One batch in work for each replica is what full means: what waits lies in the ingress's queue.
        autoscaling_config={"min_replicas": model.replicas[0], "max_replicas": model.replicas[1],
                            "target_ongoing_requests": 1} if scaled else None,
        # All batches that the ingress sends ahead, for it counts the replicas of the model that has most and this one
        # may have fewer; and one more, so that the question for its health gets through.
        max_ongoing_requests=AHEAD * most_replicas(config) + 1,
        ray_actor_options=actor,
        logging_config=SERVE_LOGGING,
        max_constructor_retry_count=1,  # what fails to load once fails again: say so at once
        health_check_period_s=5,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=config.shutdown_s,
        graceful_shutdown_wait_loop_s=0.1,
    )  # fmt: skip
    # Not what `reconfigure` may change: a new weight loads nothing anew.
    model_only = {"name": model.name, "model": model.model, "folder": model.folder}
    arguments = (config.vae, config.checkpoint_decoder, role, config.deterministic, config.stuck_s)
    return _versioned(deployment, model_only, arguments).bind(model_only, *arguments)


def _environment() -> dict:
    """KEEP_MEMORY within the runtime environment of this driver, which Serve would not add to one of our own."""
    outer = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    return outer | {"env_vars": outer.get("env_vars", {}) | KEEP_MEMORY}


def _versioned(deployment: serve.Deployment, *what) -> serve.Deployment:
    """The deployment, restarted by a later `serve.run` only where `what` differs.

    Serve manages versions itself, and takes every `serve.run` for a new one: hence the private field.
    """
    described = json.dumps(to_jsonable_python(what), sort_keys=True)  # the same in every process, as a pickle is not
    deployment._version = hashlib.sha256(described.encode()).hexdigest()[:16]
    return deployment


def user_config(config: ServiceConfig) -> dict:
    """What the ingress can change while it runs."""
    return {
        "terms": [model.part.model_dump() for model in config.models],
        "tokens": read_tokens(config.http.tokens),
    }


def check_service(config: ServiceConfig) -> None:
    """Raise UserError for files, classes or tokens that are not there, before anything is started."""
    for model in config.models:
        check_term(model.term)
    if config.vae:
        find_vae(config.vae)
    tokens = read_tokens(config.http.tokens)
    if not config.http.on_loopback and not tokens:
        raise UserError(
            f"http.host={config.http.host} listens beyond this machine, which needs tokens: set http.tokens to a file "
            "of name:token lines, or listen on 127.0.0.1"
        )


# -- private applications of a run -----------------------------------------------------------------------------------


def private_name(run_folder: str | Path) -> str:
    """Name of the application that belongs to the run in `run_folder` alone, whatever other runs are called."""
    folder = Path(run_folder).resolve()
    return f"dipp-ray-reward-{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def private_config(
    name: str,
    terms: list[RewardTerm],
    vae: str | None,
    role: RoleSection,
    replicas: int,
    deterministic: bool,
    rows: int,
) -> ServiceConfig:
    """A run's own service: every term as one model with the role's resources, for calls of `rows` rows."""
    models = [ServedModel(**term.model_dump(), role=role, replicas=replicas) for term in terms]
    wide = LimitsSection().rows
    return ServiceConfig(
        name=name,
        models=models,
        vae=vae,
        batch_rows=rows,
        deterministic=deterministic,
        limits=LimitsSection(rows=max(rows, wide), prompt_chars=LONGEST_PROMPT),
        queue=QueueSection(rows=8 * max(rows, wide)),
    )


# -- start and end ---------------------------------------------------------------------------------------------------


def deploy_rewards(config: ServiceConfig, route: str | None = None) -> None:
    """Ask Serve for the application `config.name` without waiting for it. Needs Ray.

    Starts Serve without its HTTP proxy if it does not run yet, and leaves it running. An application of that name is
    brought to this configuration: what did not change of it goes on.
    """
    # Its messages announce every step of a deployment; what goes wrong is raised by `await_rewards`.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config=SERVE_LOGGING)
    target = serve.RunTarget(
        target=application(config), name=config.name, route_prefix=route, logging_config=SERVE_LOGGING
    )
    serve.run_many([target], wait_for_applications_running=False)


def await_rewards(name: str, wait_s: float, say: Say) -> None:
    """Wait until the application runs, visibly and at most `wait_s` seconds. Raises UserError; removing it is left."""
    pace = Pace(SAY_EVERY_S)
    while (status := serve.status().applications[name].status) != ApplicationStatus.RUNNING:
        waited = pace.elapsed
        if status in FAILED or waited > wait_s:
            reason = _reason(name) or f"{status} after {waited:.0f} s: is there room for it? Raise the longest wait"
            raise UserError(f"the reward application {name} did not start: {reason}")
        if pace.due():
            held_up = f": {reason}" if (reason := _reason(name)) else ""
            say(f"waiting for the reward service {name}: {waited:.0f} of {wait_s:.0f} s so far{held_up}")
        time.sleep(POLL_S)


def stop_rewards(name: str) -> None:
    """Remove the application `name`, if it is there. Serve and everybody else's applications stay."""
    if name in serve.status().applications:
        serve.delete(name)


def drain_rewards(name: str, wait_s: float) -> int:
    """Let the application take no more calls and finish what it took; answers how many are left after `wait_s`."""
    return serve.get_app_handle(name).drain.remote(wait_s).result(timeout_s=wait_s + 10)


def _reason(name: str) -> str | None:
    """The exception that a replica of the application died of, as one line."""
    application = serve.status().applications.get(name)
    messages = [deployment.message for deployment in application.deployments.values()] if application else []
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    reason = errors[-1] if errors else (lines[-1] if lines else None)
    return reason.removeprefix(f"{UserError.__module__}.UserError: ") if reason else None
