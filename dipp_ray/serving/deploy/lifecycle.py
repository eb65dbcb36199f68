"""A reward application in a cluster: deployed, waited for, drained and removed."""

import logging
import time
from collections.abc import Callable

from ray import serve
from ray.serve.schema import ApplicationStatus

from dipp_ray.errors import UserError
from dipp_ray.reporting.pace import Pace
from dipp_ray.reporting.quiet import SERVE_LOGGING
from dipp_ray.serving.deploy.application import application
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.serving.deploy.fronting import tell_front
from dipp_ray.serving.http.tokens import read_tokens

POLL_S, SAY_EVERY_S = 0.1, 10.0
FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
Say = Callable[[str], None]


def start_serve(**how) -> None:
    """Start Serve as `serve.start` does, where it does not run yet, without its messages.

    They announce every step of a deployment; what goes wrong is raised by `await_rewards`.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(**how, logging_config=SERVE_LOGGING)


def deploy_rewards(config: ServiceConfig, route: str | None = None) -> None:
    """Ask Serve for the application `config.name` without waiting for it. Needs Ray.

    Starts Serve without its HTTP proxy if it does not run yet, and leaves it running. An application of that name is
    brought to this configuration: what did not change of it goes on. With a route, the front is told who may call.
    """
    start_serve(proxy_location="Disabled")
    target = serve.RunTarget(
        target=application(config), name=config.name, route_prefix=route, logging_config=SERVE_LOGGING
    )
    serve.run_many([target], wait_for_applications_running=False)
    if route is not None:
        tell_front(read_tokens(config.http.tokens), config.queue)


def await_rewards(name: str, wait_s: float, say: Say) -> None:
    """Wait until the application runs, visibly and at most `wait_s` seconds. Raises UserError; removing it is left."""
    pace = Pace(SAY_EVERY_S)
    while (status := serve.status().applications[name].status) != ApplicationStatus.RUNNING:
        waited = pace.elapsed
        if status in FAILED or waited > wait_s:
            reason = _reason(name) or f"{status} after {waited:.0f} s: is there room for it? Raise the longest wait"
            raise UserError(f"the reward application {name} did not start: {reason}")
        if pace.due():
            held_up = f": {why}" if (why := _reason(name)) else ""
            say(f"waiting for the reward service {name}: {waited:.0f} of {wait_s:.0f} s so far{held_up}")
        time.sleep(POLL_S)


def stop_rewards(name: str) -> None:
    """Remove the application `name`, if it is there. Serve and everybody else's applications stay."""
    if name in serve.status().applications:
        serve.delete(name)


def drain_rewards(name: str, wait_s: float) -> int:
    """Let the application take no more calls and finish what it took; returns how many are left after `wait_s`."""
    return serve.get_app_handle(name).drain.remote(wait_s).result(timeout_s=wait_s + 10)


def _reason(name: str) -> str | None:
    """The exception that a replica of the application died of, as one line."""
    application = serve.status().applications.get(name)
    messages = [deployment.message for deployment in application.deployments.values()] if application else []
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    reason = errors[-1] if errors else (lines[-1] if lines else None)
    return reason.removeprefix(f"{UserError.__module__}.UserError: ") if reason else None
