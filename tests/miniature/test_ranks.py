"""The teacher's training, shared by processes."""

from dataclasses import replace

import pytest
import torch
from miniature_worlds import TINY, silent

from dipp_ray.miniature.build import load_teacher
from dipp_ray.miniature.digits import load_scans
from dipp_ray.miniature.ranks import on_ranks
from dipp_ray.miniature.teacher import train_teacher


def two(rank, progress):
    progress(f"rank {rank}")
    if rank == 1:
        raise ValueError("no second half")
    torch.distributed.barrier()


def test_two_ranks_make_the_steps_of_one(world):
    train, _, _ = load_scans()
    recipe = replace(TINY.teacher, steps=2, ranks=2)
    lines = []
    shared = train_teacher(load_teacher(world.teacher).vae, train, recipe, lines.append).transformer.state_dict()
    alone = train_teacher(load_teacher(world.teacher).vae, train, replace(recipe, ranks=1), silent).transformer
    start = train_teacher(load_teacher(world.teacher).vae, train, replace(recipe, ranks=1, lr=0.0), silent).transformer
    moved = torch.cat([(a - b).flatten() for a, b in zip(alone.parameters(), start.parameters(), strict=True)])
    apart = torch.cat([(shared[name] - value).flatten() for name, value in alone.state_dict().items()])
    assert moved.norm() > 0 and apart.norm() < 1e-3 * moved.norm()
    assert lines == [] or all("teacher step" in line for line in lines)
    assert torch.get_num_threads() > 0 and not torch.distributed.is_initialized()


def test_a_rank_that_fails_fails_the_training():
    with pytest.raises(Exception, match=r"no second half|closed by peer|Connection"):
        on_ranks(2, two, silent)
    assert not torch.distributed.is_initialized()
