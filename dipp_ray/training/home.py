"""Where a run's folder really lies: on a disk, or in a store that gets what changed at every barrier."""

import json
import os
import socket
from pathlib import Path
from uuid import uuid4

from dipp_ray.config import RunConfig
from dipp_ray.errors import RunFolderLost
from dipp_ray.evaluation.folders import run_in_store
from dipp_ray.storage.files import is_there
from dipp_ray.storage.remote import asked

TRAINER = ".trainer.json"  # in a store: who trains there


class Home:
    """The store's side of the run's folder; of one on a disk, nothing.

    A store has no locks. Whoever trains there last has written its mark, and an earlier one ends at its next barrier.
    """

    def __init__(self, config: RunConfig):
        self.place, self.mirror, self.mark = config.place, run_in_store(config.place), uuid4().hex

    def enter(self) -> None:
        """Take up what lies in the store, leave the mark, and abort the uploads that whoever trained there left."""
        if self.mirror is None:
            return
        self.mirror.fetch(required=False)
        who = {"mark": self.mark, "host": socket.gethostname(), "process": os.getpid()}
        with asked(self.place):
            self.mirror.fs.pipe_file(self._trainer, json.dumps(who).encode())
        self.mirror.abort_left()

    def require(self, done: int) -> None:
        """Raises RunFolderLost where the folder is gone, or another process trains in it now."""
        if self.mirror is None:
            return
        with asked(self.place):
            there = is_there(self.mirror.fs, self._trainer)
            who = json.loads(self.mirror.fs.cat_file(self._trainer)) if there else None
        if who is None:
            raise RunFolderLost(f"{self.place} was removed while its run trained (seen after step {done})")
        if who["mark"] != self.mark:
            by = f"process {who['process']} on {who['host']}"
            raise RunFolderLost(
                f"{self.place}: another process trains there now ({by}; seen after step {done}): this one ends, and "
                "that one goes on from what was committed"
            )

    def push(self) -> None:
        """Send what changed."""
        if self.mirror is not None:
            self.mirror.push()

    @property
    def _trainer(self) -> str:
        assert self.mirror is not None
        return f"{self.mirror.root}/{TRAINER}"


def publish(config: RunConfig, file: Path) -> str:
    """Send what is new of a finished run's folder; returns where a person finds `file` of it."""
    mirror = run_in_store(config.place)
    if mirror is None:
        return str(file)
    mirror.push()
    return f"{mirror.url}/{file.relative_to(mirror.copy)}"


def as_others_see(config: RunConfig, value: object) -> object:
    """A path in a folder that lies in a store, as its URL: another node has no such copy. All else as it is."""
    mirror = run_in_store(config.place)
    if mirror is None or not isinstance(value, Path) or not value.is_relative_to(mirror.copy):
        return value
    return f"{mirror.url}/{value.relative_to(mirror.copy)}"
