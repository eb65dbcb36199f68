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
@ray.remote(num_cpus=0, max_restarts=0, concurrency_groups={"health": 1})
class Keeper:
    def __init__(self) -> None:
        self.shares: dict[ShareKey, tuple[dict[str, np.ndarray], dict]] = {}

    @ray.method(concurrency_group="health")
    def alive(self) -> None:
        """Returns as long as the process runs, even while a share is on its way to it."""

    def hold(self, key: ShareKey, tensors: list, counters: dict, complete: int) -> None:
        """Keep a share; shares of steps before `complete`, of which all is known to be kept, go.

        tensors: a reference of the tensors by name. In a list, for Ray would hold this call and those behind it back
        until they are there, and a keeper that waits could not be told from one that hangs.
        """
        # Copies of its own: what arrives lies in the object store, and would go with the process that sent it.
        arrays: Mapping[str, np.ndarray] = ray.get(tensors[0])
        self.shares[ShareKey(*key)] = {name: np.array(value) for name, value in arrays.items()}, dict(counters)
        self.shares = {kept: share for kept, share in self.shares.items() if kept.step >= complete}

    def have(self) -> list[ShareKey]:
        return sorted(self.shares)

    def share(self, key: ShareKey) -> tuple[dict[str, np.ndarray], dict]:
        """(tensors by name, counters)."""
        return self.shares[ShareKey(*key)]

    def counters(self, key: ShareKey) -> dict:
        """Those of a share alone."""
        return self.shares[ShareKey(*key)][1]

    def forget(self, after: int) -> None:
        """Drop what was kept after so many steps: the run has gone back, and will keep it again."""
        self.shares = {key: share for key, share in self.shares.items() if key.step <= after}


class Sender:
    """A rank's way to its keepers: shares go out beside the training, one after the other.

    patience_s: after so long without an answer a keeper is asked for a sign of life, and hangs where it gives none for
    as long again.
    """

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
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
        held = {keeper.hold.remote(key, [arrays], counters, complete): keeper for keeper in self.keepers}
        while held:
            ended, _ = ray.wait(list(held), timeout=self.patience_s)
            for one in ended:
                ray.get(one)
                del held[one]
            if not ended:
                ray.get([keeper.alive.remote() for keeper in held.values()], timeout=self.patience_s)

    def arrived(self, step: int) -> None:
        """Returns when the share of `step`, or of a later one, is kept. Raises RayError where a keeper is lost, or
        hangs."""
        with self.news:
            self.news.wait_for(lambda: any(sent >= step for sent in self.sent))
            newest = max(self.sent)
            future = self.sent[newest]
        future.result()
