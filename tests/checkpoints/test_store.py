"""Checkpoints: a torn, damaged or foreign one is never taken for a good one, and nothing good is ever lost."""

import errno
import json
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from safetensors.torch import load_file

from dipp_ray.checkpoints import CheckpointStore
from dipp_ray.errors import UserError
from dipp_ray.storage import files


def difference(record):
    return None if record["of"] == "this run" else f"it is of {record['of']}"


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(3, 5, generator=generator),
        "half": torch.randn(7, generator=generator).bfloat16(),
        "count": torch.tensor(2**62 + 1),
        "odd": torch.tensor([float("nan"), -0.0, 1e-45]),
        "empty": torch.zeros(0, 4),
        "strided": torch.randn(4, 6, generator=generator).T,
    }


def save(store, step, shares=1, record=None, seed=0):
    written, state = [], tensors(seed)
    for group in ("generator", "score"):
        for share in range(shares):
            part = {name: state[name] for name in sorted(state)[share::shares]}
            written += store.write_share(step, group, share, shares, part, {"step": step, f"rank_{share}": share})
    return store.commit(step, {"of": "this run", "cursor": step * 4} | (record or {}), written)


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert left[name].shape == right[name].shape
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (left[name], right[name])]
        assert torch.equal(*bits), name


@pytest.fixture
def said():
    return []


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    """A local folder, and a file system of another kind: nothing but fsspec may be relied upon."""
    return str(tmp_path / "run" / "checkpoints") if request.param == "local" else f"memory://{uuid4().hex}/checkpoints"


@pytest.fixture
def store(url, said):
    return CheckpointStore(url, say=said.append)


@pytest.fixture
def local(tmp_path, said):
    return CheckpointStore(tmp_path / "checkpoints", say=said.append)


@pytest.mark.parametrize("shares", [1, 2, 3])
def test_round_trip_is_exact_at_any_number_of_shares(store, shares):
    save(store, 200, shares)
    checkpoint = store.latest(difference)
    assert (checkpoint.step, checkpoint.record["cursor"], checkpoint.groups) == (200, 800, ["generator", "score"])
    for group in checkpoint.groups:
        read, counters = store.read_group(checkpoint, group)
        assert_same_bits(read, tensors())
        assert counters == {"step": 200} | {f"rank_{share}": share for share in range(shares)}


def test_the_file_is_safetensors_to_the_library(local):
    save(local, 1)
    assert_same_bits(load_file(f"{local.folder(1)}/generator/share_00_of_01.safetensors"), tensors())


def test_equal_state_gives_equal_files(local):
    assert [f.sha256 for f in save(local, 1).files] == [f.sha256 for f in save(local, 1).files]


def test_killed_between_share_and_commit_returns_the_previous_one(store, said):
    save(store, 100)
    store.write_share(200, "generator", 0, 1, tensors(1), {})
    assert store.latest(difference).step == 100
    assert said == ["checkpoint of step 200 passed over: it was never committed"]


def test_nothing_committed_is_no_checkpoint(store):
    assert store.latest(difference) is None
    store.write_share(200, "generator", 0, 1, tensors(), {})
    assert store.latest(difference) is None
    assert store.best() is None
    assert store.prune(1) == []


@pytest.mark.parametrize("fault", ["shorter", "missing", "record"])
def test_damaged_one_is_passed_over(local, said, fault):
    save(local, 100)
    save(local, 200)
    share = Path(local.folder(200), "score/share_00_of_01.safetensors")
    if fault == "shorter":
        share.write_bytes(share.read_bytes()[:-1])
    elif fault == "missing":
        share.unlink()
    else:
        Path(local.folder(200), "COMMITTED.json").write_text("{")
    assert local.latest(difference).step == 100
    assert len(said) == 1
    assert "step 200 passed over" in said[0]


def test_one_changed_bit_is_seen(local):
    save(local, 100)
    save(local, 200)
    share = Path(local.folder(200), "score/share_00_of_01.safetensors")
    content = bytearray(share.read_bytes())
    content[-1] ^= 1
    share.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        local.read_group(local.latest(difference), "score")
    assert local.latest(difference, thorough=True).step == 100


def test_all_damaged_never_means_starting_anew(local):
    save(local, 100)
    Path(local.folder(100), "score/share_00_of_01.json").unlink()
    with pytest.raises(UserError, match=r"none is whole.*run\.name"):
        local.latest(difference)


def test_another_run_is_refused_with_what_differs(store):
    save(store, 100, record={"of": "somebody else"})
    with pytest.raises(UserError, match=r"it is of somebody else.*run\.name"):
        store.latest(difference)
    assert store.latest().step == 100


def test_missing_share_cannot_be_committed(store):
    written = store.write_share(100, "generator", 0, 2, tensors(), {})
    with pytest.raises(UserError, match="shares of 'generator' are not 0 to 1"):
        store.commit(100, {}, written)
    assert store.steps() == []


def test_names_and_counters_of_the_shares_must_agree(store):
    twice = [r for share in (0, 1) for r in store.write_share(1, "generator", share, 2, tensors(), {"step": 1})]
    with pytest.raises(UserError, match="'count' lies in two shares"):
        store.read_group(store.commit(1, {}, twice), "generator")
    apart = [r for share in (0, 1) for r in store.write_share(2, "generator", share, 2, {}, {"step": share})]
    with pytest.raises(UserError, match="disagree about 'step'"):
        store.read_group(store.commit(2, {}, apart), "generator")


def test_written_anew_by_another_group_size(store):
    save(store, 100, shares=2)
    store.write_share(100, "generator", 0, 1, tensors(5), {})
    assert store.steps() == []  # from the first byte of the new attempt, the old one no longer counts
    checkpoint = save(store, 100, shares=1, seed=5)
    assert_same_bits(store.read_group(checkpoint, "score")[0], tensors(5))
    names = {path.rsplit("/", 1)[-1] for path in store.fs.find(store.folder(100))}
    assert names == {"COMMITTED.json", "share_00_of_01.safetensors", "share_00_of_01.json"}


def test_prune_keeps_the_newest_and_the_best(store):
    for step in (100, 200, 300, 400):
        save(store, step)
    store.write_share(500, "generator", 0, 1, {}, {})  # being written: not a reason to delete, not to be deleted
    store.mark_best(100, 1.5)
    assert (store.best().step, store.best().value) == (100, 1.5)
    assert store.prune(1) == [200, 300]
    assert store.steps() == [100, 400]
    assert store.prune(1) == []
    assert store.fs.exists(store.folder(500))


def test_prune_never_trades_a_whole_one_for_a_damaged_one(local):
    save(local, 100)
    save(local, 200)
    Path(local.folder(200), "score/share_00_of_01.json").unlink()
    assert local.prune(1) == []
    assert local.latest(difference).step == 100


def test_half_deleted_is_no_checkpoint(local, monkeypatch):
    save(local, 100)
    save(local, 200)
    monkeypatch.setattr(type(local.fs), "rm", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        local.prune(1)
    assert Path(local.folder(100), "generator").exists()
    assert local.steps() == [200]


def test_only_a_committed_step_can_be_best(store):
    with pytest.raises(ValueError, match="no committed checkpoint"):
        store.mark_best(100, 1.0)


class FullDisk:
    """A file that takes `room` bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 100, 400])
def test_full_disk_is_one_sentence_and_loses_nothing(local, monkeypatch, room):
    save(local, 100)
    opened = type(local.fs).open
    monkeypatch.setattr(type(local.fs), "open", lambda *a, **k: FullDisk(opened(*a, **k), room))
    with pytest.raises(UserError, match=r"No space left on device: .*checkpoint\.url"):
        save(local, 200)
    monkeypatch.undo()
    assert not list(Path(local.root).rglob(".*.part"))
    assert local.latest(difference, thorough=True).step == 100
    assert_same_bits(local.read_group(local.at(100), "generator")[0], tensors())


def test_a_torn_file_is_never_under_its_final_name(local, monkeypatch):
    def dies(_tensors):
        yield b"half"
        raise KeyboardInterrupt

    monkeypatch.setattr("dipp_ray.checkpoints.store.safetensors_chunks", dies)
    with pytest.raises(KeyboardInterrupt):
        local.write_share(100, "generator", 0, 1, tensors(), {})
    assert not [path for path in Path(local.root).rglob("*") if path.is_file()]


def test_committed_json_names_every_file(local):
    save(local, 200, shares=2)
    body = json.loads(Path(local.folder(200), "COMMITTED.json").read_text())
    assert (body["format"], body["step"], body["record"]["of"]) == (3, 200, "this run")
    assert len(body["files"]) == 8
    for file in body["files"]:
        path = Path(local.folder(200), file["path"])
        assert path.stat().st_size == file["size"]
        assert files.checksum(local.fs, str(path)) == file["sha256"]
