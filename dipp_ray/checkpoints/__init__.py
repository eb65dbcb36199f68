"""The files of a checkpoint, free of Ray and DeepSpeed: written in shares, committed last, verified when read."""

from dipp_ray.checkpoints.record import Best, Checkpoint
from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.storage.files import FileRecord

__all__ = ["Best", "Checkpoint", "CheckpointStore", "FileRecord"]
