"""What Ray Serve's own commands import: `serve deploy` of a Serve config file, and `serve build`."""

import os

from ray import serve

from dipp_ray.errors import UserError
from dipp_ray.serving.deploy.application import application
from dipp_ray.serving.deploy.check import check_service
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.serving.deploy.pinning import pinned_service
from dipp_ray.settings import load_settings, validate

VARIABLE = "DIPP_RAY_SERVICE"


def build(args: dict) -> serve.Application:
    """The application of a Serve config file: `args` is a ServiceConfig. Raises UserError for a wrong one.

    The terms of the sum and the tokens are the ingress's user_config; a Serve config may override that, and a change
    of it alone restarts nothing.
    """
    config = pinned_service(validate(args, ServiceConfig, "application args"))
    check_service(config)
    return application(config)


def __getattr__(name: str) -> serve.Application:
    """`dipp_ray.serving.deploy.entry:app`, for `serve build`: of the YAML file that DIPP_RAY_SERVICE names."""
    if name != "app":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    if not os.environ.get(VARIABLE):
        raise UserError(f"set {VARIABLE} to the YAML configuration of the service")
    config = pinned_service(load_settings(os.environ[VARIABLE], [], ServiceConfig))
    check_service(config)
    return application(config)
