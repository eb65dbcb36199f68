"""COMMITTED.json: what is changed in it is seen, what is odd in it is one sentence, and older formats go on loading."""

import json
from pathlib import Path

import pytest
import torch

from dipp_ray.checkpoints import CheckpointStore
from dipp_ray.errors import StorageUnavailable, UserError
from dipp_ray.storage.hashing import hash_of_json


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(tmp_path, said):
    return CheckpointStore(tmp_path / "checkpoints", say=said.append)


def save(store, step, record=None):
    files = [
        file
        for share in (0, 1)
        for file in store.write_share(step, "generator", share, 2, {f"w{share}": torch.ones(3)}, {"updates": step})
    ]
    return store.commit(
        step, {"data_cursor": {"next_step": step}, "deviation": 0.1, "name": "ä"} | (record or {}), files
    )


def committed(store, step) -> Path:
    return Path(store.folder(step), "COMMITTED.json")


def change(store, step, changes, sign=False):
    """Change COMMITTED.json; with `sign` as somebody does who mends its checksum too."""
    path = committed(store, step)
    body = json.loads(path.read_text())
    changes(body)
    if sign:
        body.pop("sha256", None)
        body["sha256"] = hash_of_json(body)
    path.write_text(json.dumps(body))


@pytest.mark.parametrize(
    "changes",
    [
        lambda body: body["record"]["data_cursor"].update(next_step=900),
        lambda body: body["record"].update(deviation=0.2),
        lambda body: body["record"].pop("deviation"),
        lambda body: body["record"].update(more=None),
        lambda body: body["files"][0].update(size=1),
        lambda body: body["files"].pop(),
        lambda body: body.update(more=1),
        lambda body: body.pop("sha256"),
        lambda body: body.update(sha256=None),
    ],
)
def test_whatever_is_changed_is_seen(store, said, changes):
    save(store, 100)
    save(store, 200)
    assert store.latest().step == 200
    change(store, 200, changes)
    assert store.latest().step == 100
    (one,) = said
    assert "step 200 passed over" in one and "its checksum differs from what it says" in one
    with pytest.raises(UserError, match=r"checksum differs.*remove that step's folder"):
        store.require(200)


@pytest.mark.parametrize("form", [1, 2])
def test_older_formats_go_on_loading(store, form):
    save(store, 100)
    change(store, 100, lambda body: (body.pop("sha256"), body.update(format=form)))
    checkpoint = store.latest(thorough=True)
    assert checkpoint.record["data_cursor"] == {"next_step": 100}
    assert store.read_group(checkpoint, "generator")[1] == {"updates": 100}


def odd(**changes):
    return lambda body: body.update(changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (odd(format=4), "format 4 is unknown"),
        (odd(format=None), "format None is unknown"),
        (odd(format=[]), r"format \[\] is unknown"),
        (odd(step=None), "its step is None"),
        (odd(step=True), "its step is True"),
        (odd(step=200.0), r"its step is 200\.0"),
        (odd(step=100), "its step is 100"),
        (odd(record=None), "its record is no object"),
        (odd(record=[1]), "its record is no object"),
        (odd(files=None), "its files are no list"),
        (odd(files={}), "its files are no list"),
        (odd(files=[]), "it names no share"),
        (odd(files=[None]), "a file of it has not path, sha256, size"),
        (odd(files=[{"path": "x", "size": 1}]), "a file of it has not path, sha256, size"),
        (odd(files=[{"path": None, "size": 1, "sha256": ""}]), "no path with size and checksum"),
        (odd(files=[{"path": "x", "size": "1", "sha256": ""}]), "no path with size and checksum"),
        (odd(files=[{"path": "x", "size": -1, "sha256": ""}]), "no path with size and checksum"),
        (odd(files=[{"path": "../x", "size": 1, "sha256": ""}]), "'../x' is no file of a checkpoint"),
        (odd(files=[{"path": "g/share_0_of_999999999.json", "size": 1, "sha256": ""}]), "are not 0 to 999999998"),
    ],
)
def test_whatever_is_odd_is_one_sentence(store, changes, words):
    save(store, 200)
    change(store, 200, changes, sign=True)
    with pytest.raises(UserError, match=words) as caught:
        store.require(200)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b'{"format": 1e999}']
)
def test_what_is_no_record_is_one_sentence(store, said, content):
    save(store, 100)
    save(store, 200)
    committed(store, 200).write_bytes(content)
    assert store.latest().step == 100
    assert len(said) == 1 and "is no record of a checkpoint" in said[0]
    store.mark_best(100, 1.0)
    Path(store.root, "best.json").write_bytes(content)
    with pytest.raises(UserError, match=r"best\.json is damaged"):
        store.best()


@pytest.mark.parametrize(
    "best",
    [
        {"step": None, "value": 1},
        {"step": 1},
        {"step": 1, "value": None},
        {"step": 1, "value": 10**400},
        {"step": True, "value": 1},
    ],
)
def test_an_odd_best_is_one_sentence(store, best):
    save(store, 100)
    Path(store.root, "best.json").write_text(json.dumps(best))
    with pytest.raises(UserError, match=r"best\.json is damaged"):
        store.best()


def test_shares_without_a_commit_are_named_in_one_line(store, said):
    save(store, 100)
    save(store, 200)
    store.write_share(300, "generator", 0, 2, {}, {})
    store.fs.makedirs(store.folder(400))
    committed(store, 100).unlink()
    assert store.latest().step == 200
    said.clear()
    committed(store, 200).unlink()
    assert store.latest() is None
    assert said == [
        f"{store.url} holds no COMMITTED.json, so nothing there is resumed and step 0 is next: step 100 with all 2 "
        "share(s) of generator; step 200 with all 2 share(s) of generator; step 300 with part of generator; step 400 "
        "with no share"
    ]


def test_what_cannot_be_asked_is_not_taken_for_absent(store, monkeypatch):
    """fsspec's own `exists` says no to a disk that is away: the run would begin again from step 0."""
    save(store, 100)
    for name in ("info", "ls"):
        with monkeypatch.context() as patch:
            patch.setattr(type(store.fs), name, lambda *_, **__: (_ for _ in ()).throw(OSError("the disk is away")))
            with pytest.raises(StorageUnavailable, match="the disk is away"):
                store.latest()
    monkeypatch.setattr(type(store.fs), "info", lambda *_, **__: (_ for _ in ()).throw(OSError("the disk is away")))
    with pytest.raises(StorageUnavailable, match="the disk is away"):
        store.at(100)
