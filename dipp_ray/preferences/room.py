"""Waiting, visibly and for a bounded time, until the cluster can hold the fewest workers of a fit."""

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from dipp_ray.preferences.config import WorkerSettings
from dipp_ray.reporting.waiting import waiting

LOOK_S = 1.0  # seconds between two looks


def await_room(workers: WorkerSettings) -> None:
    """Return once there was room for the fewest workers. Raises UserError after `wait_s` seconds.

    The room is asked for as a placement group, which an autoscaler sees, and given back at once: Ray Train, which by
    itself would wait for ever, takes it next.
    """
    bundle = workers.resources
    if workers.accelerator:
        bundle = bundle | {f"accelerator_type:{workers.accelerator}": 0.001}
    group = placement_group(
        [bundle] * workers.fewest, bundle_label_selector=[workers.labels] * workers.fewest if workers.labels else None
    )
    try:
        with waiting(f"room for {described(workers)}", workers.wait_s) as detail:
            while not group.wait(LOOK_S):
                detail(f"{cluster_has()}; ask for less in workers, or add nodes")
    finally:
        remove_placement_group(group)


def described(workers: WorkerSettings) -> str:
    """'2 workers of 1 CPU, 1 GPU on A100 with market=spot'."""
    text = f"{workers.fewest} worker{'s' if workers.fewest > 1 else ''} of "
    text += ", ".join(f"{amount:g} {name}" for name, amount in workers.resources.items())
    text += f" on {workers.accelerator}" if workers.accelerator else ""
    labels = ", ".join(f"{key}={value}" for key, value in workers.labels.items())
    return f"{text} with {labels}" if labels else text


def cluster_has() -> str:
    """What the living nodes have in all, in use or not."""
    total = ray.cluster_resources()
    return f"the cluster has {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs in all"
