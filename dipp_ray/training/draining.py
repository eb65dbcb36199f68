"""Which nodes of the cluster are about to leave it."""

from ray._private.state import state  # Ray has no public way to ask


def draining_nodes() -> dict[str, float]:
    """The draining nodes by id, with the time at which each goes: seconds since the epoch, 0 where none is set."""
    return {node_id: deadline / 1000 for node_id, deadline in state.get_draining_nodes().items()}
