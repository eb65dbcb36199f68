"""Checkpoints and files on a real S3 API: alike with a disk, patient with a store's faults, never half written."""

import re

import botocore.exceptions
import fsspec
import pytest
import torch

from dipp_ray.checkpoints import CheckpointStore
from dipp_ray.errors import StorageUnavailable, UserError
from dipp_ray.storage import remote
from dipp_ray.storage.remote import file_system, require_store
from faulty_s3 import FAULTS

QUICK = ("503", "lost", "cut")
PART = 5 * 2**20  # the least that S3 takes as a part


def state(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(300 + step, generator=generator) for name in ("weight", "moment")}


def save(store, step, shares=2):
    tensors, files = state(step), []
    for share in range(shares):
        part = {name: tensors[name] for name in sorted(tensors)[share::shares]}
        files += store.write_share(step, "generator", share, shares, part, {"step": step})
    store.commit(step, {}, files)


def save_and_prune(store, shares=2):
    save(store, 200, shares)
    store.mark_best(200, 0.5)
    store.prune(1)


def goes_on(url) -> int:
    """The step from which a run would go on; every committed one is whole."""
    store = CheckpointStore(url, say=lambda _: None)
    for step in store.steps():
        read, counters = store.read_group(store.require(step), "generator")
        assert counters == {"step": step}
        assert all(torch.equal(read[name], value) for name, value in state(step).items())
    return store.latest(thorough=True).step


def uploads(url):
    fs, root = file_system(url)
    return fs.call_s3("list_multipart_uploads", Bucket=root.partition("/")[0]).get("Uploads", [])


def objects(url):
    fs, root = file_system(url)
    return sorted(path.removeprefix(f"{root}/") for path in fs.find(root))


def test_a_bucket_is_like_a_folder(bucket):
    url = f"{bucket}/runs/one/checkpoints"
    store = CheckpointStore(url, say=lambda _: None)
    assert store.latest() is None and store.steps() == []
    save(store, 100)
    assert goes_on(url) == 100
    save_and_prune(store)
    assert (goes_on(url), store.steps(), store.best().step) == (200, [200], 200)
    names = [
        "COMMITTED.json",
        *(f"generator/share_0{i}_of_02.{kind}" for i in (0, 1) for kind in ("json", "safetensors")),
    ]
    assert objects(url) == ["best.json", *(f"step_000200/{name}" for name in names)]


SLOW_FAULTS = [pytest.param(kind, marks=pytest.mark.slow) for kind in FAULTS if kind not in QUICK]


@pytest.mark.parametrize("kind", [*QUICK, *SLOW_FAULTS])
def test_a_fault_of_a_moment_is_not_seen(s3, bucket, kind):
    """Each request in turn: it fails once, and what was meant is there."""
    url = f"{bucket}/moment"
    store = CheckpointStore(url, say=lambda _: None)
    save(store, 100)
    with s3.faults(lambda number, method, path: None):
        save_and_prune(CheckpointStore(url, say=lambda _: None))
        requests = len(s3.requests)
    assert requests > 20
    every = 6 if kind == "slow" else 3
    with s3.faults(lambda number, method, path: kind if number % every == 1 else None):
        save(store, 300)
        store.mark_best(300, 0.7)
        store.prune(1)
        assert goes_on(url) == 300
    assert store.steps() == [300] and uploads(bucket) == []


BUSY, AWAY = r"its store fails, or has too much to do \(.*\): wait", r"its store cannot be reached \(.*\): set AWS_ENDP"
LASTING = {"500": BUSY, "503": BUSY, "throttled": BUSY, "slow": BUSY, "reset": AWAY, "lost": AWAY, "cut": AWAY}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_that_lasts_is_one_sentence(s3, bucket, monkeypatch, kind):
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    goes_on = "; what was committed before is intact, and the same command goes on from there$"
    for work in (lambda store: save(store, 100), lambda store: store.latest()):
        store = CheckpointStore(f"{bucket}/runs", say=lambda _: None)
        with s3.faults(lambda *_: kind), pytest.raises(StorageUnavailable) as caught:
            work(store)
        assert re.search(rf"^{bucket}/runs: {LASTING[kind]}.*{goes_on}", str(caught.value))
    if kind == "cut":
        return  # of answers without a body nothing is cut
    with s3.faults(lambda *_: kind), pytest.raises(UserError) as refused:
        require_store(f"{bucket}/runs", "checkpoint.url")
    assert re.search(rf"^checkpoint\.url={bucket}/runs: {LASTING[kind]}[^\n]*$", str(refused.value))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_whatever_request_fails_for_good(s3, bucket, monkeypatch, kind):
    """From each request on nothing is answered, as where the network goes or the process is killed there."""
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    if kind != "slow":
        monkeypatch.setattr(remote, "READ_S", 60.0)  # nothing is slow here but the machine
    number, finished = 0, False
    while not finished:
        url = f"{bucket}/{kind}/{number}"
        save(CheckpointStore(url, say=lambda _: None), 100, 1)
        try:
            with s3.faults(lambda at, method, path, first=number: kind if at >= first else None):
                save_and_prune(CheckpointStore(url, say=lambda _: None), 1)
            finished = len(s3.requests) <= number
        except (StorageUnavailable, UserError) as error:
            assert "\n" not in str(error)
        assert goes_on(url) in (100, 200), number
        save_and_prune(CheckpointStore(url, say=lambda _: None), 1)
        assert goes_on(url) == 200
        assert len(objects(url)) == 4 and uploads(bucket) == []
        number += 1
    assert number > 15


def test_a_large_share_goes_in_parts_and_leaves_none(s3, bucket, monkeypatch):
    url = f"{bucket}/parts"
    store = CheckpointStore(url, say=lambda _: None)
    store.fs.default_block_size = PART
    large = {"weight": torch.arange(5 * PART // 4, dtype=torch.float32)}
    with s3.faults(lambda number, method, path: "503" if "partNumber=2" in path and number % 2 else None):
        files = store.write_share(1, "generator", 0, 1, large, {})
    assert sum("partNumber" in request for request in s3.requests) >= 3
    checkpoint = store.commit(1, {}, files)
    assert torch.equal(store.read_group(checkpoint, "generator")[0]["weight"], large["weight"])
    assert uploads(bucket) == []

    # The network goes in the middle: the object is not there, and what was sent is removed by the next retention.
    gone = [False]

    def fault(number, method, path):
        gone[0] = gone[0] or "partNumber=3" in path
        return "reset" if gone[0] else None

    fs, _ = file_system(url, attempts=1)
    broken = CheckpointStore(url, say=lambda _: None)
    broken.fs, fs.default_block_size = fs, PART
    with s3.faults(fault), pytest.raises(StorageUnavailable, match=r"cannot be reached|onnection"):
        broken.write_share(2, "generator", 0, 1, large, {})
    assert store.latest(thorough=True).step == 1
    assert not any("step_000002/generator/share_00_of_01.safetensors" in name for name in objects(url))
    assert len(uploads(bucket)) == 1
    other = f"{bucket}/another"
    left = store.fs.call_s3("create_multipart_upload", Bucket=bucket.removeprefix("s3://"), Key="another/step_000001/x")
    for step in (3, 4):
        store.commit(step, {}, store.write_share(step, "generator", 0, 1, {}, {}))
    store.prune(1)
    assert [upload["UploadId"] for upload in uploads(bucket)] == [left["UploadId"]], "another run's is left alone"
    assert objects(url) == [f"step_000004/{name}" for name in (
        "COMMITTED.json", "generator/share_00_of_01.json", "generator/share_00_of_01.safetensors",
    )] and objects(other) == []  # fmt: skip


def test_an_upload_of_a_step_that_is_being_written_is_left(bucket):
    url = f"{bucket}/newer"
    store = CheckpointStore(url, say=lambda _: None)
    save(store, 100)
    store.fs.call_s3("create_multipart_upload", Bucket=bucket.removeprefix("s3://"), Key="newer/step_000200/x")
    store.prune(1)
    assert len(uploads(bucket)) == 1


def test_a_store_that_is_usable_is_left_as_it_was(bucket):
    require_store(f"{bucket}/runs", "run.folder")
    assert objects(bucket) == []


def test_a_missing_bucket_is_one_sentence_and_is_not_made(bucket):
    with pytest.raises(UserError, match=r"^checkpoint\.url=s3://nowhere/x: there is no such bucket: make it, or"):
        require_store("s3://nowhere/x", "checkpoint.url")
    store = CheckpointStore("s3://nowhere/x", say=lambda _: None)
    with pytest.raises(StorageUnavailable, match="s3://nowhere/x"):
        store.write_share(1, "generator", 0, 1, {}, {})
    fs, _ = file_system(bucket)
    assert "nowhere" not in {one["Name"] for one in fs.call_s3("list_buckets")["Buckets"]}


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("AWS_ACCESS_KEY_ID", None, "no credentials for it: set AWS_ACCESS_KEY_ID"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "its store cannot be reached"),
        ("AWS_PROFILE", "nobody", "no credentials for it"),
    ],
)
def test_what_is_lacking_is_one_sentence(bucket, monkeypatch, tmp_path, variable, value, words):
    if value is None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    else:
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(UserError, match=words) as caught:
        require_store(f"{bucket}/runs", "run.folder")
    assert str(caught.value).startswith(f"run.folder={bucket}/runs: ") and "\n" not in str(caught.value)


def test_credentials_that_are_refused_are_one_sentence(bucket, monkeypatch):
    fs, _ = file_system(f"{bucket}/runs", attempts=3)
    refused = botocore.exceptions.ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "PutObject")
    monkeypatch.setattr(fs, "pipe_file", lambda *_: (_ for _ in ()).throw(refused))
    with pytest.raises(UserError, match=r"the store refuses these credentials .*AccessDenied"):
        require_store(f"{bucket}/runs", "run.folder")
