"""What one process of a role sets before anything else: threads, devices, ranks, determinism. The only place."""

import math
import os
import random
import socket

import torch
import torch.distributed

from dipp_ray.config import RoleSection
from dipp_ray.errors import UserError
from dipp_ray.hub.revisions import take_pinned_alone
from dipp_ray.models.pipeline import device_of_this_process


def prepare(role: RoleSection, deterministic: bool) -> torch.device:
    """Set threads and determinism of this process; return its device (the one GPU that Ray shows it, or the CPU).

    From now on it takes of the hub what its driver has pinned alone.
    """
    take_pinned_alone()
    torch.set_num_threads(role.threads)
    # fp32 means fp32: TF32's error of 1e-3 would drown the comparison of the exported pipeline with the trainer.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if not role.gpus:
        return torch.device("cpu")
    device = device_of_this_process()
    if device.type != "cuda":
        raise UserError(
            f"a role asks for {role.gpus:g} GPU, but torch sees none in its process: install torch for CUDA"
        )
    return device


def free_port(low: int, high: int) -> int:
    """A port of [low, high) that nothing listens on now. Another process may take it first: the caller tries again."""
    for port in random.SystemRandom().sample(range(low, high), 50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError(f"no free port among 50 tried in {low}..{high}: widen roles.ports")


def join(rank: int, world: int, host: str, port: int, device: torch.device, timeout_s: float) -> None:
    """Join the group's own torch.distributed world, through DeepSpeed; `timeout_s` bounds every collective."""
    on_gpu = device.type == "cuda"
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK="0",
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
        DEEPSPEED_TIMEOUT=str(math.ceil(timeout_s / 60)),  # minutes
        DS_ACCELERATOR="cuda" if on_gpu else "cpu",
    )
    import deepspeed
    import deepspeed.ops

    # On the CPU DeepSpeed would build this operator for 38 s, under a file lock that can hang later runs for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
