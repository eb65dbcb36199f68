"""Whether what a service's configuration names is there: found before anything is started."""

from dipp_ray.errors import UserError
from dipp_ray.hub.fetch import local
from dipp_ray.hub.selection import weights_of
from dipp_ray.models.vae_folder import find_vae
from dipp_ray.rewards.loading import check_term
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.serving.http.tokens import read_tokens


def check_service(config: ServiceConfig) -> None:
    """Raise UserError for files, classes or tokens that are not there, before anything is started."""
    for model in config.models:
        check_term(model.term)
    for folder in [*([config.vae] if config.vae else []), *(vae.folder for vae in config.vaes)]:
        find_vae(local(folder, weights_of("vae")))
    tokens = read_tokens(config.http.tokens)
    if not config.http.on_loopback and not tokens:
        raise UserError(
            f"http.host={config.http.host} listens beyond this machine, which needs tokens: set http.tokens to a file "
            "of name:token lines, or listen on 127.0.0.1"
        )
