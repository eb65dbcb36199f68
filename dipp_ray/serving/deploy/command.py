"""`dipp-ray serve-rewards`: the service in the foreground, until Ctrl-C."""

import os
from collections.abc import Callable
from contextlib import suppress

import rich
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from dipp_ray.errors import UserError
from dipp_ray.serving.contract.failures import first_line
from dipp_ray.serving.deploy.application import INGRESS
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.serving.deploy.lifecycle import Say, await_rewards, deploy_rewards, drain_rewards, stop_rewards
from dipp_ray.serving.deploy.listening import ROUTE, start_http
from dipp_ray.serving.deploy.overview import how_to_call, models_table
from dipp_ray.serving.deploy.reloading import reloaded
from dipp_ray.serving.deploy.signals import ending_by_exception, until_ended

UNBOUNDED = (
    "warning: Ray Serve was started elsewhere, and its HTTP proxy bounds neither headers nor calls: put a proxy in "
    "front that does (docs/rewards.md)"
)


def serve_rewards(config: ServiceConfig, read: Callable[[], ServiceConfig], detach: bool, say: Say) -> None:
    """Serve `config` until SIGINT, SIGTERM or SIGHUP; with `detach` leave it in the cluster and return.

    Needs Ray. SIGUSR1 reads the configuration anew with `read`: weights, bounds and tokens change without a restart, a
    model whose own settings changed is restarted. At the end the calls that were taken are finished first.
    Raises UserError where it does not start; what was started for it is gone then. KeyboardInterrupt likewise.
    """
    with ending_by_exception():
        try:
            if not start_http(config.http):
                say(UNBOUNDED)
            there = require_name(config.name, detach)
            try:
                _deploy(config)
                decoders = f" and {len(config.vaes)} VAEs" if config.vaes else ""
                say(f"starting {len(config.models)} reward models{decoders}")
                await_rewards(config.name, config.wait_s, say)
                _running(config, read, detach, say)
            except BaseException:
                if there:
                    say(f"the service {config.name} stays as it is now: deploy a configuration that starts, or end it")
                else:
                    with suppress(Exception):  # what failed first is what a person must read
                        stop_rewards(config.name)
                raise
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the reward service {config.name} was given up") from None
        if not detach:
            with suppress(RayError, RayServeException):  # Serve may have been ended by somebody else
                stop_rewards(config.name)


def require_name(name: str, detach: bool) -> bool:
    """Whether a reward service of this name runs, which `detach` brings to a new configuration.

    Raises UserError where an application of that name runs that is not to be touched: it may be somebody else's.
    """
    there = serve.status().applications.get(name)
    if there is None:
        return False
    if not detach:
        raise UserError(
            f"an application named {name} runs in this cluster already: set another name, or end that one with `serve "
            f"delete {name}` if it is yours (--detach brings it to this configuration)"
        )
    if there.deployments and INGRESS not in there.deployments:
        raise UserError(f"an application named {name} runs in this cluster and is no reward service: set another name")
    return True


def _deploy(config: ServiceConfig) -> None:
    try:
        deploy_rewards(config, ROUTE)
    except RayServeException as error:  # the route is another application's
        reason = first_line(getattr(error, "cause", error))  # the controller's error comes as a task's
        raise UserError(f"{reason} End that one with `serve delete`, or call by handle") from None


def _running(config: ServiceConfig, read: Callable[[], ServiceConfig], detach: bool, say: Say) -> None:
    rich.print(models_table(config))
    for line in how_to_call(config):
        say(line)
    if detach:
        say(f"the service goes on; `serve status` shows it, `serve delete {config.name}` ends it")
        return
    say(f"Ctrl-C ends it; `kill -USR1 {os.getpid()}` reads the configuration anew")

    def reload() -> None:
        nonlocal config
        config = reloaded(config, read, say)

    until_ended(reload, lambda: _finish(config, say))


def _finish(config: ServiceConfig, say: Say) -> None:
    say("finishing the calls that were taken")
    try:
        left = drain_rewards(config.name, config.shutdown_s)
    except (RayError, RayServeException, TimeoutError) as error:
        say(f"the service is gone already ({first_line(error)})")
    else:
        if left:
            say(f"{left} calls were not finished within shutdown_s={config.shutdown_s:g} s")
