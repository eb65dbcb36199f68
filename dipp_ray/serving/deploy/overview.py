"""What a person is told of a service that runs: its models, who may call and how."""

from pathlib import Path

from rich.table import Table

from dipp_ray.connecting import logs_folder
from dipp_ray.rewards.loading import is_differentiable, reward_class
from dipp_ray.serving.deploy.config import Deployed, ServiceConfig
from dipp_ray.serving.http.document import example
from dipp_ray.serving.http.tokens import read_tokens


def models_table(config: ServiceConfig) -> Table:
    """The models, their part in the sum, and where they run."""
    table = Table(title=f"Reward service {config.name}")
    for column in ("model", "kind", "weight", "scale", "bound", "replicas", "on"):
        table.add_column(column)
    for model in config.models:
        scaled = f"(s - {model.mean:g}) / {model.deviation:g}" if (model.mean, model.deviation) != (0, 1) else ""
        bound = (
            f"hinge {model.hinge:g}"
            if model.hinge is not None
            else f"cap {model.cap:g}"
            if model.cap is not None
            else ""
        )
        weight = "held out" if model.held_out else f"{model.weight:g}"
        name = model.name if model.required else f"{model.name} (not required)"
        table.add_row(name, model.model, weight, scaled, bound, *_place(model))
    for vae in config.vaes:
        table.add_row(vae.name, "VAE", "", "", "", *_place(vae))
    return table


def _place(served: Deployed) -> tuple[str, str]:
    """How many replicas, and on what."""
    role, (least, most) = served.role, served.bounds
    kind = f" {role.accelerator}" if role.accelerator else ""
    where = f"{role.gpus:g} GPU{kind}" if role.gpus else f"{role.cpus:g} CPU"
    return str(least) if isinstance(served.replicas, int) else f"{least} to {most}", where


def _trainers(config: ServiceConfig) -> list[str]:
    """Those who have a token."""
    return sorted(set(read_tokens(config.http.tokens).values()))


def who_may_call(config: ServiceConfig) -> str:
    trainers = _trainers(config)
    return f"tokens are required, of: {', '.join(trainers)}" if trainers else "no tokens: this machine alone may call"


def how_to_call(config: ServiceConfig) -> list[str]:
    """For a person: where the service listens, who may call, and one call to try."""
    host = f"[{config.http.host}]" if ":" in config.http.host else config.http.host
    url = f"http://{host}:{config.http.port}"
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
    lines.append(f"what a model raises stands in its replica's log: {logs_folder()}/serve on its node")
    lines.append(f"try: {example(url, bool(_trainers(config)))}")
    return lines
