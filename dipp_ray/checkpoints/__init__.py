"""The files of a checkpoint, free of Ray and DeepSpeed: written in shares, committed last, verified when read."""

from dipp_ray.checkpoints.files import FileRecord
from dipp_ray.checkpoints.store import Best, Checkpoint, CheckpointStore

__all__ = ["Best", "Checkpoint", "CheckpointStore", "FileRecord"]
