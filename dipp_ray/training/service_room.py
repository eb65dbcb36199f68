"""Whether the connected cluster can hold a reward service at all."""

from ray._private.state import state

from dipp_ray.errors import UserError
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.training.placement import cluster_nodes
from dipp_ray.training.plan import Node, Request, plan


def require_room(config: ServiceConfig) -> None:
    """Raise UserError where no room can come for the fewest replicas of each model, whatever else is given back.

    A cluster with an autoscaler may still get the nodes, so nothing is refused there.
    """
    if state.get_cluster_config() is None:  # what an autoscaler reports
        require_room_on(config, cluster_nodes())


def require_room_on(config: ServiceConfig, nodes: list[Node]) -> None:
    """`require_room` for these nodes."""
    unmet = list(plan(requests(config), nodes).unmet.values())
    if unmet:
        raise UserError(f"the cluster cannot hold this service: {unmet[0]}; ask for less in its role, or add nodes")


def requests(config: ServiceConfig) -> list[Request]:
    """One for each replica that a model or a VAE begins with."""
    found = []
    named = [(f"reward '{model.name}'", model) for model in config.models]
    for name, served in [*named, *((f"VAE '{vae.name}'", vae) for vae in config.vaes)]:
        role = served.role
        one = (role.cpus, role.gpus, role.accelerator, role.labels, role.resources)
        found += [Request(name, index, *one) for index in range(served.least_replicas)]
    return found
