"""A new configuration for a service that runs, and the old one back where the new one is faulty."""

from collections.abc import Callable

import rich
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from dipp_ray.errors import UserError
from dipp_ray.rewards.terms import SumTerm
from dipp_ray.serving.contract.failures import first_line
from dipp_ray.serving.deploy.check import check_service
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.serving.deploy.lifecycle import Say, await_rewards, deploy_rewards
from dipp_ray.serving.deploy.listening import ROUTE
from dipp_ray.serving.deploy.overview import models_table, who_may_call


def reloaded(config: ServiceConfig, read: Callable[[], ServiceConfig], say: Say) -> ServiceConfig:
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


def restarts(old: ServiceConfig, new: ServiceConfig) -> bool:
    """Whether replicas are started anew for the new configuration."""
    sum_alone = set(SumTerm.model_fields) - {"name"}

    def lasting(config: ServiceConfig) -> dict:
        given = config.model_dump(exclude={"http"})
        return given | {"models": [model.model_dump(exclude=sum_alone) for model in config.models]}

    return lasting(old) != lasting(new)
