"""A run resumes from the last committed checkpoint, whatever operation fails and whenever the power goes."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from dipp_ray.checkpoints import CheckpointStore
from dipp_ray.errors import StorageUnavailable, UserError
from disk import Disk


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    """Hundreds of syncs: what counts is where they stand."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def state(step: int) -> dict[str, torch.Tensor]:
    """Another one, of another size, for each step."""
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(3 + step, generator=generator) for name in ("weight", "moment")}


def save(store: CheckpointStore, step: int, seed: int | None = None) -> None:
    """The state of `seed` (by default that of the step) as the checkpoint of `step`, in two shares a group."""
    tensors, files = state(step if seed is None else seed), []
    for group in ("generator", "score"):
        for share, name in enumerate(sorted(tensors)):
            files += store.write_share(step, group, share, 2, {name: tensors[name]}, {"step": step})
    store.commit(step, {}, files)


def resumed(url: str | Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Step and generator of the checkpoint from which a run would go on. Every one that is committed must be whole."""
    store = CheckpointStore(str(url), say=lambda _: None)
    for step in store.steps():
        for group in ("generator", "score"):
            tensors, _ = store.read_group(store.at(step), group)
            assert tensors.keys() == state(step).keys()
    checkpoint = store.latest(thorough=True)
    return checkpoint.step, store.read_group(checkpoint, "generator")[0]


def is_state(tensors: dict[str, torch.Tensor], seed: int) -> bool:
    return all(torch.equal(tensors[name], value) for name, value in state(seed).items())


def save_next(store: CheckpointStore) -> None:
    save(store, 2)


def save_next_and_prune(store: CheckpointStore) -> None:
    save(store, 2)
    store.mark_best(2, 0.5)
    store.prune(1)


def save_again(store: CheckpointStore) -> None:
    """The step that is the newest is written anew, in another state: the run went back, say."""
    save(store, 2)
    save(store, 2, seed=3)


ATTEMPTS = [save_next, save_next_and_prune, save_again]


def assert_goes_on(url: str | Path) -> int:
    step, tensors = resumed(url)
    assert is_state(tensors, step) or (step == 2 and is_state(tensors, 3))
    return step


@pytest.mark.parametrize("for_good", [False, True], ids=["fails", "killed"])
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_whatever_operation_fails(tmp_path, attempt: Callable, for_good: bool):
    save(CheckpointStore(tmp_path / "start"), 1)
    number, finished = 0, False
    while not finished:
        folder = shutil.copytree(tmp_path / "start", tmp_path / str(number))
        store = CheckpointStore(folder, say=lambda _: None)
        disk = Disk(folder, number, for_good)
        try:
            with disk.recording():
                attempt(store)
            finished = disk.count <= number
        except (StorageUnavailable, UserError):
            pass
        assert assert_goes_on(folder) in (1, 2), disk.done
        attempt(store)
        assert assert_goes_on(folder) == 2, "the next attempt is not held up by what the first left"
        number += 1
    assert number > 50


@pytest.mark.parametrize("eager", [False, True], ids=["names late", "names early"])
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_whenever_the_power_fails(tmp_path, attempt: Callable, eager: bool):
    store = CheckpointStore(tmp_path / "real", say=lambda _: None)
    save(store, 1)
    disk = Disk(tmp_path / "real")
    with disk.recording():
        attempt(store)
    for operations in range(len(disk.done) + 1):
        step = assert_goes_on(disk.after_power_cut(operations, eager, tmp_path / f"cut_{operations}"))
    assert step == 2, "it is on the disk when the call returns"


class RefusingMemory:
    """fsspec's memory, of which the n-th call fails: an object store that is away for a moment."""

    CALLS = ("open", "makedirs", "info", "find", "rm_file", "rm", "ls", "cat_file")

    def __init__(self, fails: int):
        self.fails, self.count = fails, 0

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        for name in self.CALLS:
            patch.setattr(MemoryFileSystem, name, self._wrapped(getattr(MemoryFileSystem, name)))

    def _wrapped(self, call):
        def wrapper(*arguments, **options):
            number, self.count = self.count, self.count + 1
            if number == self.fails:
                raise OSError(errno.EIO, "the store is away")
            return call(*arguments, **options)

        return wrapper


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_whatever_call_of_an_object_store_fails(attempt: Callable):
    number, finished = 0, False
    while not finished:
        url = f"memory://{uuid4().hex}"
        store = CheckpointStore(url, say=lambda _: None)
        save(store, 1)
        memory = RefusingMemory(number)
        try:
            with pytest.MonkeyPatch.context() as patch:
                memory.patch(patch)
                attempt(store)
            finished = memory.count <= number
        except (StorageUnavailable, UserError):
            pass
        assert assert_goes_on(url) in (1, 2), number
        attempt(store)
        assert assert_goes_on(url) == 2
        store.fs.rm(store.root, recursive=True)
        number += 1
    assert number > 20


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"\0", lambda _: b""])
def test_a_share_of_another_size_than_recorded_cannot_be_committed(tmp_path, change):
    store = CheckpointStore(tmp_path, say=lambda _: None)
    save(store, 1)
    files = store.write_share(2, "generator", 0, 1, state(2), {})
    share = Path(store.folder(2), files[0].path)
    share.write_bytes(change(share.read_bytes()))
    with pytest.raises(UserError, match=r"step 2 cannot be committed: .*safetensors has \d+ bytes instead of \d+"):
        store.commit(2, {}, files)
    assert store.steps() == [1]
    share.unlink()
    with pytest.raises(UserError, match=r"step 2 cannot be committed: .*safetensors is missing"):
        store.commit(2, {}, files)
    assert store.steps() == [1]
