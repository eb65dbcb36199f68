"""Checkpoints beside the training: ranks write their shares while steps go on; when all are there, one is committed."""

import time
from contextlib import suppress
from dataclasses import dataclass

import ray
from ray.exceptions import RayActorError

from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.roles.waiting import value_of
from dipp_ray.storage.files import FileRecord
from dipp_ray.training.controller import Controller
from dipp_ray.training.looks import Look
from dipp_ray.training.tasks import GROUPS


@dataclass(frozen=True)
class Begun:
    """A checkpoint whose shares are being written. best: the best model so far, where it is this one."""

    step: int
    record: dict
    best: Look | None
    written: list[ray.ObjectRef]  # one for each rank, there when its share is


class Saver:
    """keep: checkpoints that stay when a newer one is committed."""

    def __init__(self, store: CheckpointStore, keep: int):
        self.store, self.keep = store, keep
        self.saved = 0  # finished steps of the last checkpoint
        self.held_up = 0.0  # seconds that the last one held the training up
        self.begun: Begun | None = None

    def begin(self, controller: Controller, step: int, record: dict, best: Look | None) -> None:
        """At a barrier: have every rank copy its state as it is now, and write the copy beside what comes next.

        The checkpoint before is committed first: a rank holds one copy at a time.
        """
        began = time.perf_counter()
        self.finish(controller)
        for group in GROUPS:
            controller.together(group, "write_share", self.store.url, step)
        actors = controller.actors
        written = [
            actors.of(group, rank).share_written.remote() for group in GROUPS for rank in range(actors.count(group))
        ]
        self.begun = Begun(step, record, best, written)
        self.held_up = time.perf_counter() - began

    def commit_if_written(self, timeout_s: float = 0.0) -> None:
        """Commit what was begun, if all of it is there within `timeout_s`. What a lost rank did not write is forgotten.

        Raises what a rank's writing raised, or StorageUnavailable.
        """
        if self.begun is None:
            return
        written = self.begun.written
        if len(ray.wait(written, num_returns=len(written), timeout=timeout_s)[0]) < len(written):
            return
        begun, self.begun = self.begun, None
        with suppress(RayActorError):  # whose loss is somebody else's to tell
            self._commit(begun, [value_of(reference) for reference in written])

    def finish(self, controller: Controller) -> None:
        """At a barrier: wait until what was begun is written, and commit it. Raises what a rank's writing raised, or
        RoleFailure."""
        if self.begun is None:
            return
        began, begun, self.begun = time.perf_counter(), self.begun, None
        self._commit(begun, [share for group in GROUPS for share in controller.together(group, "share_written")])
        self.held_up += time.perf_counter() - began

    def forget(self) -> None:
        """What was begun is lost with its ranks; the checkpoint before stays the newest."""
        self.begun = None

    @property
    def writes_best(self) -> bool:
        """Whether the best model so far is only being written."""
        return self.begun is not None and self.begun.best is not None

    def _commit(self, begun: Begun, shares: list[list[FileRecord]]) -> None:
        self.store.commit(begun.step, begun.record, [file for share in shares for file in share])
        self.saved = begun.step
        if begun.best:
            self.store.mark_best(begun.best.step, begun.best.mean)
        self.store.prune(self.keep)
