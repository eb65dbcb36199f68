"""`dipp-ray serve-rewards`: the service in the foreground, until Ctrl-C."""

import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import rich
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from rich.table import Table

from dipp_ray.errors import UserError
from dipp_ray.reporting.quiet import SERVE_LOGGING
from dipp_ray.rewards.loading import is_differentiable, reward_class
from dipp_ray.rewards.terms import SumTerm
from dipp_ray.serving.contract.failures import first_line
from dipp_ray.serving.deploy.application import (
    INGRESS,
    await_rewards,
    check_service,
    deploy_rewards,
    drain_rewards,
    stop_rewards,
)
from dipp_ray.serving.deploy.config import HttpSection, ServiceConfig
from dipp_ray.serving.http.document import example
from dipp_ray.serving.http.tokens import read_tokens

ROUTE = "/"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Say = Callable[[str], None]


def serve_rewards(config: ServiceConfig, read: Callable[[], ServiceConfig], detach: bool, say: Say) -> None:
    """Serve `config` until SIGINT, SIGTERM or SIGHUP; with `detach` leave it in the cluster and return.

    Needs Ray. SIGUSR1 reads the configuration anew with `read`: weights, bounds and tokens change without a restart, a
    model whose own settings changed is restarted. At the end the calls that were taken are finished first.
    Raises UserError where it does not start; what was started for it is gone then. KeyboardInterrupt likewise.
    """
    with _ending_by_exception():
        try:
            start_http(config.http)
            there = require_name(config.name, detach)
            try:
                _deploy(config)
                say(f"starting {len(config.models)} reward models")
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


def ending() -> list[int]:
    """The signals that end the service: not those that were ignored when it was started, as `nohup` does."""
    return [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def _ending_by_exception():
    """What would end the process at once raises KeyboardInterrupt instead, so that nothing is left behind."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in ending()}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda *_: None)  # a reload that comes too early or too late
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _running(config: ServiceConfig, read: Callable[[], ServiceConfig], detach: bool, say: Say) -> None:
    rich.print(models_table(config))
    for line in how_to_call(config):
        say(line)
    if detach:
        say(f"the service goes on; `serve status` shows it, `serve delete {config.name}` ends it")
        return
    say(f"Ctrl-C ends it; `kill -USR1 {os.getpid()}` reads the configuration anew")
    _until_interrupted(config, read, say)


def _until_interrupted(config: ServiceConfig, read: Callable[[], ServiceConfig], say: Say) -> None:
    wake, ended, reload = threading.Event(), threading.Event(), threading.Event()

    def handler(number, frame):
        if number in ENDING and ended.is_set():
            raise KeyboardInterrupt  # a second time: at once
        (reload if number == signal.SIGUSR1 else ended).set()
        wake.set()

    before = {number: signal.signal(number, handler) for number in (*ending(), signal.SIGUSR1)}
    try:
        while not ended.is_set():
            wake.wait()
            wake.clear()
            if reload.is_set():
                reload.clear()
                config = _reloaded(config, read, say)
        say("finishing the calls that were taken")
        try:
            left = drain_rewards(config.name, config.shutdown_s)
        except (RayError, RayServeException, TimeoutError) as error:
            say(f"the service is gone already ({first_line(error)})")
        else:
            if left:
                say(f"{left} calls were not finished within shutdown_s={config.shutdown_s:g} s")
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _reloaded(config: ServiceConfig, read: Callable[[], ServiceConfig], say: Say) -> ServiceConfig:
    """The new configuration in force, or the old one where the new one is faulty."""
    try:
        new = read()
        if (new.name, new.http.host, new.http.port) != (config.name, config.http.host, config.http.port):
            raise UserError("name, http.host and http.port change only with a restart of this command")
        check_service(new)
        if restarts(config, new):
            say("more than weights, bounds and tokens changed: calls may wait while replicas are started anew")
        deploy_rewards(new, ROUTE)
    except (UserError, ValueError, RayError, RayServeException) as error:
        say(f"not reloaded, the old configuration stays: {first_line(error)}")
        return config
    try:
        await_rewards(new.name, new.wait_s, say)
    except UserError as error:
        say(f"the old configuration comes back, for the new one does not start: {error}")
        deploy_rewards(config, ROUTE)
        await_rewards(config.name, config.wait_s, say)
        return config
    say("reloaded")
    rich.print(models_table(new))
    say(who_may_call(new))
    return new


def start_http(http: HttpSection) -> None:
    """Start Serve with its HTTP proxy where it does not run yet.

    Raises UserError where the port cannot be had, or where Serve runs and listens elsewhere.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    client = _get_global_client(raise_if_no_controller_running=False)  # Serve tells it nowhere else
    if client is None:
        require_port(http)
        serve.start(http_options={"host": http.host, "port": http.port}, logging_config=SERVE_LOGGING)
        return
    if not serve.status().proxies:
        raise UserError(
            "Ray Serve runs in this cluster without HTTP, which only its start can change: call the service by "
            "handle (reward.app), or end Serve with `serve shutdown` when nobody uses it"
        )
    there = client.http_config
    if (there.host, there.port) != (http.host, http.port):
        raise UserError(
            f"Ray Serve listens on {there.host}:{there.port} in this cluster already, which only its start can change: "
            f"set http.host={there.host} and http.port={there.port}"
        )


def require_port(http: HttpSection) -> None:
    """Raise UserError where no program can listen on the host and port."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in http.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((http.host, http.port))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is taken already" if taken else f"cannot be listened on ({error.strerror})"
        raise UserError(f"{http.host}:{http.port} {reason}: set http.port{'' if taken else ' or http.host'}") from None


def models_table(config: ServiceConfig) -> Table:
    """The models, their part in the sum, and where they run."""
    table = Table(title=f"Reward service {config.name}")
    for column in ("model", "kind", "weight", "scale", "bound", "replicas", "on"):
        table.add_column(column)
    for model in config.models:
        role = model.role
        scaled = f"(s - {model.mean:g}) / {model.deviation:g}" if (model.mean, model.deviation) != (0, 1) else ""
        bound = (
            f"hinge {model.hinge:g}"
            if model.hinge is not None
            else f"cap {model.cap:g}"
            if model.cap is not None
            else ""
        )
        where = (
            f"{role.gpus:g} GPU{f' {role.accelerator}' if role.accelerator else ''}"
            if role.gpus
            else f"{role.cpus:g} CPU"
        )
        replicas = str(model.replicas) if isinstance(model.replicas, int) else "{} to {}".format(*model.replicas)
        weight = "held out" if model.held_out else f"{model.weight:g}"
        name = model.name if model.required else f"{model.name} (not required)"
        table.add_row(name, model.model, weight, scaled, bound, replicas, where)
    return table


def restarts(old: ServiceConfig, new: ServiceConfig) -> bool:
    """Whether replicas are started anew for the new configuration."""
    sum_alone = set(SumTerm.model_fields) - {"name"}

    def lasting(config: ServiceConfig) -> dict:
        given = config.model_dump(exclude={"http"})
        return given | {"models": [model.model_dump(exclude=sum_alone) for model in config.models]}

    return lasting(old) != lasting(new)


def who_may_call(config: ServiceConfig) -> str:
    trainers = sorted(set(read_tokens(config.http.tokens).values()))
    return f"tokens are required, of: {', '.join(trainers)}" if trainers else "no tokens: this machine alone may call"


def how_to_call(config: ServiceConfig) -> list[str]:
    """For a person: where the service listens, who may call, and one call to try."""
    host = f"[{config.http.host}]" if ":" in config.http.host else config.http.host
    url = f"http://{host}:{config.http.port}"
    trainers = sorted(set(read_tokens(config.http.tokens).values()))
    lines = [f"listening on {url}: {url}/docs says how to call, {url}/healthz whether it is well"]
    lines.append(who_may_call(config))
    if not config.http.on_loopback:
        lines.append("warning: tokens and images travel in the clear; put a proxy with TLS in front (README)")
    if config.http.tokens and Path(config.http.tokens).stat().st_mode & 0o077:
        lines.append(f"warning: others on this machine can read the tokens: chmod 600 {config.http.tokens}")
    lines += [
        f"warning: reward '{model.name}' has no gradient, so calls for one are refused: set its held_out=true"
        for model in config.models
        if not model.held_out and not is_differentiable(reward_class(model.term))
    ]
    lines.append("what a model raises stands in its replica's log: /tmp/ray/session_latest/logs/serve on its node")
    lines.append(f"try: {example(url, bool(trainers))}")
    return lines
