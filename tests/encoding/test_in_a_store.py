"""Prompts and embeddings in an object store, over S3's own API on loopback, as on a disk."""

from collections import Counter
from contextlib import contextmanager

import pyarrow
import pyarrow.parquet
import pytest
import torch

from dipp_ray.data.embeddings import Embeddings, sizes_in
from dipp_ray.data.prompts import prompts_of, read_prompts
from dipp_ray.diffusion.noise import Draws
from dipp_ray.encoding.encoder import Encoder
from dipp_ray.errors import StorageUnavailable, UserError
from dipp_ray.models.text import TextEncoder
from dipp_ray.storage import remote
from dipp_ray.storage.remote import ATTEMPTS, file_system
from dipp_ray.training.checks import check
from encoded_prompts import encoded
from faulty_s3 import SLOW_S, leave_upload, uploads
from settings import tiny_config
from tiny import PROMPTS, pixart_pipeline, prompt_file

MOMENTARY = ("500", "503", "throttled", "reset")
LASTING = {
    "500": "its store fails, or has too much to do",
    "503": "its store fails, or has too much to do",
    "throttled": "its store fails, or has too much to do",
    "slow": "its store fails, or has too much to do",
    "reset": "its store cannot be reached",
    "refused": "the store refuses these credentials",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, pipeline, prompts in row groups of two, their embeddings)."""
    folder = tmp_path_factory.mktemp("store")
    pipeline, prompts = pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"prompt": PROMPTS}), prompts, row_group_size=2)
    return folder, pipeline, prompts, encoded(tiny_config(folder, pipeline, prompts), folder / "embeddings")


@pytest.fixture
def stored(world, bucket):
    """The bucket, with the prompts of that world in two kinds of file, and the embeddings."""
    _, _, prompts, embeddings = world
    fs, root = file_system(bucket)
    fs.put_file(str(prompts), f"{root}/prompts/a.parquet")
    fs.pipe_file(f"{root}/prompts.txt", "\n".join(PROMPTS).encode())
    for path in embeddings.iterdir():
        if not path.name.startswith("."):
            fs.put_file(str(path), f"{root}/embeddings/{path.name}")
    return bucket


def test_embeddings_in_a_store(world, bucket):
    folder, pipeline, prompts, _ = world
    fs, root = file_system(bucket)
    fs.put_file(str(prompts), f"{root}/prompts/a.parquet")
    config = tiny_config(folder, pipeline, f"{bucket}/prompts", "data.order=epoch")
    assert list(read_prompts(f"{bucket}/prompts", "prompt")) == PROMPTS
    out = f"{bucket}/embeddings"

    encoded(config, out)
    encoded(config, out, encoders=None)
    assert len(sizes_in(out)) == 5
    found, text = Embeddings(out), TextEncoder(pipeline, torch.device("cpu"))
    assert torch.equal(found.at([4, 0]).tokens, text([PROMPTS[4], PROMPTS[0]]).tokens)
    assert torch.equal(found.null.tokens, text([""]).tokens)

    run = tiny_config(folder, pipeline, f"{bucket}/prompts", "data.order=epoch", f"data.embeddings={out}")
    draws = Draws(7, 0, 0, range(4))
    assert prompts_of(run).of(draws) == prompts_of(config).of(draws) and len(check(run)) == 5
    fs.rm_file(f"{root}/embeddings/shard-000002.parquet")
    with pytest.raises(UserError, match=r"shard-000002\.parquet is missing"):
        check(run)


@pytest.mark.parametrize("kind", MOMENTARY)
def test_a_fault_of_a_moment_is_not_seen(world, stored, s3, kind):
    """Each object's first requests fail as often as they may, and one later."""
    seen = Counter()

    def fault(number, method, path):
        seen[method, path] += 1
        return kind if seen[method, path] < ATTEMPTS or seen[method, path] == ATTEMPTS + 1 else None

    here = Embeddings(str(world[3]))
    with s3.faults(fault):
        assert list(read_prompts(f"{stored}/prompts", "prompt")) == PROMPTS
        assert list(read_prompts(f"{stored}/prompts.txt", "prompt")) == PROMPTS
        found = Embeddings(f"{stored}/embeddings")
        assert torch.equal(found.at(range(5)).tokens, here.at(range(5)).tokens)
        assert torch.equal(found.null.tokens, here.null.tokens)
    assert max(seen.values()) > ATTEMPTS


@pytest.mark.parametrize("kind", LASTING)
def test_a_fault_that_lasts_is_one_sentence(stored, s3, monkeypatch, kind):
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    monkeypatch.setattr(remote, "READ_S", SLOW_S / 3)
    reads = {
        f"prompt file {stored}/prompts": lambda: read_prompts(f"{stored}/prompts", "prompt"),
        f"data.embeddings={stored}/embeddings": lambda: Embeddings(f"{stored}/embeddings"),
    }
    for named, read in reads.items():
        with s3.faults(lambda number, method, path: kind), pytest.raises(UserError) as caught:
            read()
        said = str(caught.value)
        assert said.startswith(f"{named}: {LASTING[kind]} (") and "\n" not in said
        # No oftener than remote.py says, but that the HTTP client itself asks anew where a kept connection was closed.
        assert len(s3.requests) <= 1 + (kind == "reset")
    with s3.faults(lambda number, method, path: kind), pytest.raises(StorageUnavailable, match=LASTING[kind]):
        sizes_in(f"{stored}/embeddings")


def test_what_others_write_meanwhile_is_seen(stored):
    assert list(read_prompts(f"{stored}/prompts", "prompt")) == PROMPTS
    other, root = file_system(stored, attempts=2)
    other.pipe_file(f"{root}/prompts/b.txt", b"one more\n")
    assert list(read_prompts(f"{stored}/prompts", "prompt")) == [*PROMPTS, "one more"]


def test_what_is_not_in_the_store_is_one_sentence(stored):
    with pytest.raises(UserError, match=r"does not exist: set data\.prompts"):
        read_prompts(f"{stored}/nowhere.parquet", "prompt")
    with pytest.raises(UserError, match=r"no file is called s3://.*: correct the pattern"):
        read_prompts(f"{stored}/nowhere/*.parquet", "prompt")
    with pytest.raises(UserError, match=r"holds no _encoded\.json"):
        Embeddings(f"{stored}/prompts")


def test_a_missing_bucket_is_one_sentence(world, bucket):
    lacking = "s3://nowhere/here: there is no such bucket: make it, or correct the URL$"
    with pytest.raises(UserError, match=f"^prompt file {lacking}"):
        read_prompts("s3://nowhere/here", "prompt")
    with pytest.raises(UserError, match=f"^data.embeddings={lacking}"):
        Embeddings("s3://nowhere/here")
    with pytest.raises(UserError, match=f"^out={lacking}"):
        encoded(tiny_config(*world[:3]), "s3://nowhere/here", encoders=lambda config: pytest.fail("it was begun"))


def test_credentials_that_are_lost_are_one_sentence(stored, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    file_system(stored)[0].clear_instance_cache()
    lost = "no credentials for it: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE$"
    with pytest.raises(UserError, match=f"^prompt file {stored}/prompts: {lost}"):
        read_prompts(f"{stored}/prompts", "prompt")
    with pytest.raises(UserError, match=f"^data.embeddings={stored}/embeddings: {lost}"):
        Embeddings(f"{stored}/embeddings")


def test_encoding_aborts_what_killed_encoders_left(world, bucket):
    leave_upload(bucket, "embeddings/shard-000001.parquet")
    leave_upload(bucket, "embeddings2/shard-000001.parquet")

    @contextmanager
    def encoders(config):
        assert uploads(bucket) == ["embeddings2/shard-000001.parquet"], "another command's is left alone"
        leave_upload(bucket, "embeddings/shard-000000.parquet")  # of an actor that is lost now
        yield [Encoder(config, torch.device("cpu"))]

    encoded(tiny_config(*world[:3]), f"{bucket}/embeddings", encoders=encoders)
    assert uploads(bucket) == ["embeddings2/shard-000001.parquet"] and len(sizes_in(f"{bucket}/embeddings")) == 5
