"""A service's models of the hub, at one commit on every node that a replica may run on."""

from dipp_ray.hub.revisions import pinned
from dipp_ray.serving.deploy.config import ServiceConfig


def pinned_service(config: ServiceConfig) -> ServiceConfig:
    """The configuration with every hub id at a commit. Raises UserError as `dipp_ray.hub.revisions.pinned`."""
    models = [
        model.model_copy(update={"folder": pinned(model.folder)}) if model.folder else model for model in config.models
    ]
    vaes = [vae.model_copy(update={"folder": pinned(vae.folder)}) for vae in config.vaes]
    return config.model_copy(update={"models": models, "vae": config.vae and pinned(config.vae), "vaes": vaes})
