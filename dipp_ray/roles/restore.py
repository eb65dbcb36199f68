"""A group's checkpoint, read once by all of its ranks together: each share by one of them, and spread by tensor.

Whoever reads a share reads all of it, so that its checksum is verified. No rank holds more of it than a tensor or two.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch
import torch.distributed
from torch import Tensor

from dipp_ray.checkpoints.record import Checkpoint, twice
from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.checkpoints.tensors import Kept
from dipp_ray.errors import StorageUnavailable, UserError
from dipp_ray.storage.files import FileRecord


def spread(
    store: CheckpointStore,
    checkpoint: Checkpoint,
    group: str,
    device: torch.device,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Iterator[tuple[str, Tensor]]:
    """The wanted tensors of a group's shares by name, on `device`, one after the other and whole in every rank.

    A collective: all ranks of the process group iterate together, to the end. Raises UserError in every rank where a
    share is damaged, missing or cannot be read, or a name lies in two.
    """
    world, seen = torch.distributed.get_world_size(), set()
    for number, file in enumerate(checkpoint.of_group(group, "safetensors")):
        for name, tensor in _share(store, checkpoint, file, number % world, device, wanted):
            if name in seen:
                raise twice(checkpoint, group, name)
            seen.add(name)
            yield name, tensor


def _share(
    store: CheckpointStore,
    checkpoint: Checkpoint,
    file: FileRecord,
    reader: int,
    device: torch.device,
    wanted: Callable[[str], bool],
) -> Iterator[tuple[str, Tensor]]:
    reads = torch.distributed.get_rank() == reader
    with ExitStack() as stack:
        kept: list[Kept] = []
        tensors: Iterator[tuple[Kept, Tensor]] = iter(())
        fault: str | None = None
        if reads:
            try:
                share = stack.enter_context(store.open_share(checkpoint, file))
                kept, tensors = [one for one in share.kept if wanted(one.name)], share.tensors(wanted)
            except (UserError, StorageUnavailable) as error:
                fault = str(error)
        kept, fault = _told([kept, fault], reader, device)
        if fault is not None:
            raise UserError(fault)
        for one in kept:
            tensor: Tensor | None = None
            if reads and fault is None:
                try:
                    _, tensor = next(tensors)
                except (UserError, StorageUnavailable) as error:
                    fault = str(error)  # the others wait for the rest of the tensors: said behind them
            tensor = (one.empty() if tensor is None else tensor).to(device)
            torch.distributed.broadcast(_bytes(tensor), src=reader)
            yield one.name, tensor
            del tensor
        if reads and fault is None:
            try:
                for _ in tensors:
                    pass
            except (UserError, StorageUnavailable) as error:
                fault = str(error)
        (fault,) = _told([fault], reader, device)
        if fault is not None:
            raise UserError(fault)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _told(values: list, reader: int, device: torch.device) -> list:
    """What the reader says of the share, in every rank."""
    torch.distributed.broadcast_object_list(values, src=reader, device=device)
    return values
