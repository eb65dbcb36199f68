"""The reward service as a Ray Serve application: one ingress, one deployment for each reward model and named VAE."""

import hashlib
import json
import os

import ray
from pydantic_core import to_jsonable_python
from ray import serve

from dipp_ray.config import RoleSection
from dipp_ray.models.vae_folder import find_vae
from dipp_ray.reporting.quiet import SERVE_LOGGING
from dipp_ray.rewards.loading import is_differentiable, reward_class
from dipp_ray.serving.contract.records import VaeRecord
from dipp_ray.serving.core.decoder_replica import DecoderReplica
from dipp_ray.serving.core.ingress import DECODER, IngressSettings
from dipp_ray.serving.core.replica import ModelReplica
from dipp_ray.serving.core.scheduler import AHEAD
from dipp_ray.serving.deploy.config import Deployed, ServedModel, ServedVae, ServiceConfig
from dipp_ray.serving.http.app import HttpIngress
from dipp_ray.serving.http.tokens import read_tokens

INGRESS = "Rewards"  # no model is called so: their names begin with a small letter
ONGOING_CALLS = 10_000  # of the ingress: its own queue bounds them
# glibc reads these when a process starts. It would give large blocks back to the system at once, and a batch's
# activations would be gigabytes of fresh pages each time.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}


def application(config: ServiceConfig) -> serve.Application:
    """One deployment a model, one a named VAE, and the ingress in front. Every node that may run a replica must see the
    folders."""
    settings = ingress_settings(config)
    models = {model.name: model_deployment(model, config) for model in config.models}
    decoders = {vae.name: decoder_deployment(vae, config) for vae in config.vaes}
    ingress = serve.deployment(
        serve.ingress()(HttpIngress),
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
    return _versioned(ingress, settings, sorted(models)).bind(settings, models, decoders)


def ingress_settings(config: ServiceConfig) -> IngressSettings:
    return IngressSettings(
        config.name,
        config.batch_rows,
        config.deterministic,
        config.optional_wait_s,
        most_replicas(config),
        _latent_channels(config),
        {model.name: model.model for model in config.models},
        tuple(model.name for model in config.models if not is_differentiable(reward_class(model.term))),
        config.limits,
        config.queue,
        {vae.name: vae_record(vae.folder) for vae in config.vaes},
    )


def vae_record(folder: str) -> VaeRecord:
    """What the VAE of a folder decodes. Raises UserError as `find_vae`."""
    found = find_vae(folder)
    return VaeRecord(latent_channels=found.latent_channels, latents=found.latents)


def _latent_channels(config: ServiceConfig) -> int | None:
    """Those of the only VAE, whether it has a name or none."""
    folders = [config.vae] if config.vae else [vae.folder for vae in config.vaes]
    return find_vae(folders[0]).latent_channels if len(folders) == 1 else None


def most_replicas(config: ServiceConfig) -> int:
    return max(model.most_replicas for model in config.models)


def model_deployment(model: ServedModel, config: ServiceConfig) -> serve.Application:
    # All batches that the ingress sends ahead, for it counts the replicas of the model that has most and this one may
    # have fewer; and one more, so that the question for its health gets through.
    deployment = _deployment(ModelReplica, model.name, model, config, AHEAD * most_replicas(config) + 1)
    # Not what `reconfigure` may change: a new weight loads nothing anew.
    model_only: dict = {"name": model.name, "model": model.model, "folder": model.folder}
    if model.server is not None:
        model_only["server"] = model.server.model_dump()
    arguments = (config.vae, config.checkpoint_decoder, model.role, config.deterministic, config.stuck_s)
    return _versioned(deployment, model_only, arguments).bind(model_only, *arguments)


def decoder_deployment(vae: ServedVae, config: ServiceConfig) -> serve.Application:
    # Of each batch that is ahead it is asked twice, though never at once.
    deployment = _deployment(DecoderReplica, DECODER + vae.name, vae, config, AHEAD * most_replicas(config) + 1)
    arguments = (vae.name, vae.folder, config.checkpoint_decoder, vae.role, config.deterministic, config.stuck_s)
    return _versioned(deployment, arguments).bind(*arguments)


def _deployment(replica: type, name: str, served: Deployed, config: ServiceConfig, ongoing: int) -> serve.Deployment:
    (least, most), scaled = served.bounds, isinstance(served.replicas, tuple)
    return serve.deployment(
        replica,
        name=name,
        num_replicas=None if scaled else least,
        # One batch in work for each replica is what full means: what waits lies in the ingress's queue.
        autoscaling_config={"min_replicas": least, "max_replicas": most,
                            "target_ongoing_requests": 1} if scaled else None,
        max_ongoing_requests=ongoing,
        ray_actor_options=replica_options(served.role),
        logging_config=SERVE_LOGGING,
        max_constructor_retry_count=1,  # what fails to load once fails again: say so at once
        health_check_period_s=5,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=config.shutdown_s,
        graceful_shutdown_wait_loop_s=0.1,
    )  # fmt: skip


def replica_options(role: RoleSection) -> dict:
    """What an actor that holds one reward model asks Ray for."""
    actor: dict = {"num_cpus": role.cpus, "num_gpus": role.gpus}
    if role.accelerator:
        actor["accelerator_type"] = role.accelerator
    if role.resources:
        actor["resources"] = role.resources
    if role.labels:
        actor["label_selector"] = role.labels
    if not role.gpus:
        actor["runtime_env"] = _environment()
    return actor


def _environment() -> dict:
    """KEEP_MEMORY within the runtime environment of this driver, which Serve would not add to one of our own. Whoever
    starts the driver with settings of glibc's own knows better."""
    outer = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    kept = {} if any(name.startswith("MALLOC_") for name in os.environ) else KEEP_MEMORY
    return outer | {"env_vars": outer.get("env_vars", {}) | kept}


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
