"""A group's state, read once by all of its ranks together: each share by one of them, and spread by tensor.

Whoever reads a share of a checkpoint reads all of it, so that its checksum is verified, and no rank holds more of it
than a tensor or two. Of the state in memory a rank holds the share that it reads besides, one at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
import ray
import torch
import torch.distributed
from torch import Tensor

from dipp_ray.checkpoints.record import Checkpoint, twice
from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.checkpoints.tensors import Kept
from dipp_ray.errors import StorageUnavailable, UserError
from dipp_ray.roles.keeper import ShareKey

ALL: Callable[[str], bool] = lambda name: True  # noqa: E731


class Share(Protocol):
    """An open share: what lies in it, and its wanted tensors, each on the CPU, to be read once."""

    kept: list[Kept]

    def tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[Kept, Tensor]]: ...


Opens = Callable[[], AbstractContextManager[Share]]


def spread(
    store: CheckpointStore,
    checkpoint: Checkpoint,
    group: str,
    device: torch.device,
    wanted: Callable[[str], bool] = ALL,
) -> Iterator[tuple[str, Tensor]]:
    """The wanted tensors of a group's shares by name, on `device`, one after the other and whole in every rank.

    A collective: all ranks of the process group iterate together, to the end. Raises UserError in every rank where a
    share is damaged, missing or cannot be read, or a name lies in two.
    """
    world, seen = torch.distributed.get_world_size(), set()
    for number, file in enumerate(checkpoint.of_group(group, "safetensors")):
        opens: Opens = partial(store.open_share, checkpoint, file)
        for name, tensor in _share(opens, number % world, device, wanted):
            if name in seen:
                raise twice(checkpoint, group, name)
            seen.add(name)
            yield name, tensor


def spread_kept(shares: Sequence[tuple[ShareKey, Any]], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """As `spread`, of shares that keepers hold: (share's key, its keeper). Raises RayError in the rank that reads a
    share whose keeper is lost: the others wait, and are ended with it."""
    world = torch.distributed.get_world_size()
    for number, (key, keeper) in enumerate(shares):
        yield from _share(partial(_fetched, key, keeper), number % world, device, ALL)


@contextmanager
def _fetched(key: ShareKey, keeper: Any) -> Iterator["Fetched"]:
    arrays, _ = ray.get(keeper.share.remote(key))
    yield Fetched(arrays)


class Fetched:
    """A share from a keeper, in the memory of this machine."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays
        self.kept = [
            Kept(name, torch.from_numpy(np.empty(0, value.dtype)).dtype, value.shape) for name, value in arrays.items()
        ]

    def tensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[Kept, Tensor]]:
        for one in self.kept:
            if wanted(one.name):
                yield one, torch.tensor(self.arrays[one.name])


def _share(
    opens: Opens, reader: int, device: torch.device, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, Tensor]]:
    reads = torch.distributed.get_rank() == reader
    with ExitStack() as stack:
        kept: list[Kept] = []
        tensors: Iterator[tuple[Kept, Tensor]] = iter(())
        fault: str | None = None
        if reads:
            try:
                share = stack.enter_context(opens())
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
