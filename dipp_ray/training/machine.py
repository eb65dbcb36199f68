"""This machine as the one node of a cluster that Ray would start here: planned for without starting it."""

import socket

from ray._private.accelerators import get_accelerator_manager_for_resource  # as Ray itself counts

from dipp_ray.diffusion.noise import processors
from dipp_ray.training.plan import ACCELERATOR, Node


def this_machine() -> Node:
    """A node with this machine's processors and GPUs, and the kind of these, all of it free."""
    total = {"CPU": float(processors())}
    gpus = get_accelerator_manager_for_resource("GPU")
    count = gpus.get_current_node_num_accelerators()
    visible = gpus.get_current_process_visible_accelerator_ids()
    if visible is not None:
        count = min(count, len(visible))
    if count:
        total["GPU"] = float(count)
        if kind := gpus.get_current_node_accelerator_type():
            total[ACCELERATOR + kind] = 1.0
    return Node("this machine", socket.gethostname(), total)
