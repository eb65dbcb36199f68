"""Training shared by processes of one computing thread each, which meet once a step, at their gradients.

Threads of one process meet after every operator, and spin there: beside another busy program they stand still.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from dipp_ray.miniature.stages import Progress, computing_threads

Work = Callable[[int, Progress], None]


def on_ranks(count: int, work: Work, progress: Progress) -> None:
    """`work(rank, progress)` in `count` processes, all in one process group of gloo; rank 0 is this process.

    The others are started with what `work` holds (it must pickle) and say nothing. Where one fails, so does this.
    """
    with TemporaryDirectory() as folder, computing_threads(1):
        meeting = Path(folder, "meeting").as_uri()
        others = torch.multiprocessing.start_processes(
            _other, (count, work, meeting), nprocs=count - 1, join=False, daemon=True, start_method="spawn"
        )
        try:
            _joined(0, count, work, meeting, progress)
            while not others.join():
                pass
        finally:
            for process in others.processes:
                process.kill()


def _other(index: int, count: int, work: Work, meeting: str) -> None:
    torch.set_num_threads(1)
    _joined(index + 1, count, work, meeting, lambda line: None)


def _joined(rank: int, count: int, work: Work, meeting: str, progress: Progress) -> None:
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    try:
        work(rank, progress)
    finally:
        dist.destroy_process_group()
