"""`dipp-ray serve-rewards`: the service in the foreground, until Ctrl-C."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable

import rich
from ray import serve
from rich.table import Table

from dipp_ray.errors import UserError
from dipp_ray.reporting.quiet import SERVE_LOGGING
from dipp_ray.serving.app import await_rewards, check_service, deploy_rewards, drain_rewards, stop_rewards
from dipp_ray.serving.config import ServiceConfig
from dipp_ray.serving.tokens import read_tokens

ROUTE = "/"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
Say = Callable[[str], None]


def serve_rewards(read: Callable[[], ServiceConfig], detach: bool, say: Say) -> None:
    """Serve what `read` answers, until SIGINT, SIGTERM or SIGHUP; with `detach` leave it in the cluster and return.

    Needs Ray. SIGUSR1 reads the configuration anew: weights, bounds and tokens change without a restart, a model whose
    own settings changed is restarted. At the end the calls that were taken are finished first.
    """
    config = read()
    start_http(config)
    try:
        deploy_rewards(config, ROUTE)
        say(f"starting {len(config.models)} reward models")
        await_rewards(config.name, config.wait_s, say)
        _running(config, read, detach, say)
    except BaseException:
        stop_rewards(config.name)
        raise
    if not detach:
        stop_rewards(config.name)


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
        (reload if number == signal.SIGUSR1 else ended).set()
        wake.set()

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        while not ended.is_set():
            wake.wait()
            wake.clear()
            if reload.is_set():
                reload.clear()
                config = _reloaded(config, read, say)
        say("finishing the calls that were taken")
        if left := drain_rewards(config.name, config.shutdown_s):
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
    except UserError as error:
        say(f"not reloaded, the old configuration stays: {error}")
        return config
    deploy_rewards(new, ROUTE)
    try:
        await_rewards(new.name, new.wait_s, say)
    except UserError as error:
        say(f"the old configuration comes back, for the new one does not start: {error}")
        deploy_rewards(config, ROUTE)
        await_rewards(config.name, config.wait_s, say)
        return config
    say("reloaded")
    rich.print(models_table(new))
    return new


def start_http(config: ServiceConfig) -> None:
    """Start Serve with its HTTP proxy where it does not run yet. Raises UserError where the port cannot be had."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    host, port = config.http.host, config.http.port
    running = serve.status().proxies or serve.status().applications
    if running:
        if not serve.status().proxies:
            raise UserError(
                "Ray Serve runs in this cluster without HTTP, which only its start can change: call the service by "
                "handle (reward.app), or end Serve with `serve shutdown` when nobody uses it"
            )
        return
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UserError(f"http: {host}:{port} cannot be had ({error.strerror}): set http.host or http.port") from None
    serve.start(http_options={"host": host, "port": port}, logging_config=SERVE_LOGGING)


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


def how_to_call(config: ServiceConfig) -> list[str]:
    """For a person: where the service listens, who may call, and one call to try."""
    url = f"http://{config.http.host}:{config.http.port}"
    trainers = sorted(set(read_tokens(config.http.tokens).values()))
    lines = [f"listening on {url}: {url}/docs says how to call, {url}/healthz whether it is well"]
    lines.append(
        f"tokens are required, of: {', '.join(trainers)}" if trainers else "no tokens: this machine alone may call"
    )
    if not config.http.on_loopback:
        lines.append("warning: tokens and images travel in the clear; put a proxy with TLS in front (README)")
    header = ' -H "Authorization: Bearer $TOKEN"' if trainers else ""
    lines.append(
        f"try: curl {url}/v1/score{header} -H 'Content-Type: application/json' "
        """-d '{"prompts": ["a cat"], "images": ["'$(base64 -w0 cat.png)'"]}'"""
    )
    return lines
