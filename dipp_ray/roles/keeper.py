"""Training state in the memory of other processes: shares of trained groups, for when their ranks are lost."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Condition
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import ray

if TYPE_CHECKING:  # a keeper starts without torch
    from torch import Tensor


class ShareKey(NamedTuple):
    """Whose share it is: rank `rank` of `world` of a group, after `step` finished steps."""

    step: int
    group: str
    rank: int
    world: int


# Lost with its node, and what it held with it: who comes back holds nothing.
@ray.remote(num_cpus=0, max_restarts=0)
class Keeper:
    def __init__(self) -> None:
        self.shares: dict[ShareKey, tuple[dict[str, np.ndarray], dict]] = {}

    def hold(self, key: ShareKey, tensors: Mapping[str, np.ndarray], counters: dict, complete: int) -> None:
        """Keep a share; shares of steps before `complete`, of which all is known to be kept, go."""
        # Copies of its own: what arrives lies in the object store, and would go with the process that sent it.
        self.shares[ShareKey(*key)] = {name: np.array(value) for name, value in tensors.items()}, dict(counters)
        self.shares = {kept: share for kept, share in self.shares.items() if kept.step >= complete}

    def have(self) -> list[ShareKey]:
        return sorted(self.shares)

    def share(self, key: ShareKey) -> tuple[dict[str, np.ndarray], dict]:
        """(tensors by name, counters)."""
        return self.shares[ShareKey(*key)]

    def forget(self, after: int) -> None:
        """Drop what was kept after so many steps: the run has gone back, and will keep it again."""
        self.shares = {key: share for key, share in self.shares.items() if key.step <= after}


class Sender:
    """A rank's way to its keepers: shares go out beside the training, one after the other."""

    def __init__(self) -> None:
        self.keepers: Sequence = ()
        self.thread = ThreadPoolExecutor(1)
        self.sent: dict[int, Future] = {}  # by step, the last one alone
        self.news = Condition()

    def send(self, key: ShareKey, tensors: "dict[str, Tensor]", counters: dict, complete: int) -> None:
        """Have a share kept; waits until the one before has arrived, or is lost. See `Keeper.hold`."""
        wait(self.sent.values())
        with self.news:
            self.sent = {key.step: self.thread.submit(self._send, key, tensors, counters, complete)}
            self.news.notify_all()

    def _send(self, key: ShareKey, tensors: "dict[str, Tensor]", counters: dict, complete: int) -> None:
        arrays = ray.put({name: value.numpy() for name, value in tensors.items()})
        ray.get([keeper.hold.remote(key, arrays, counters, complete) for keeper in self.keepers])

    def arrived(self, step: int) -> None:
        """Returns when the share of `step`, or of a later one, is kept. Raises RayError where a keeper is lost."""
        with self.news:
            self.news.wait_for(lambda: any(sent >= step for sent in self.sent))
            newest = max(self.sent)
            future = self.sent[newest]
        future.result()
