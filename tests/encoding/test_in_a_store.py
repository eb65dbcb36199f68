"""Prompts and embeddings in an object store, over S3's own API on loopback, as on a disk."""

import fsspec
import pytest
import torch
from moto.server import ThreadedMotoServer

from dipp_ray.data.embeddings import Embeddings, sizes_in
from dipp_ray.data.prompts import prompts_of, read_prompts
from dipp_ray.diffusion.noise import Draws
from dipp_ray.errors import UserError
from dipp_ray.models.text import TextEncoder
from dipp_ray.training.checks import check
from encoded_prompts import encoded
from settings import tiny_config
from tiny import PROMPTS, pixart_pipeline, prompt_file


@pytest.fixture(scope="module")
def bucket():
    """s3:// of a bucket; the standard environment says where it is."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir("s3://data")
        yield "s3://data"
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def test_embeddings_in_a_store(bucket, tmp_path):
    pipeline, prompts = pixart_pipeline(tmp_path / "pipeline"), prompt_file(tmp_path / "prompts.parquet")
    fsspec.filesystem("s3").put(str(prompts), f"{bucket}/prompts/a.parquet")
    config = tiny_config(tmp_path, pipeline, f"{bucket}/prompts", "data.order=epoch")
    assert list(read_prompts(f"{bucket}/prompts", "prompt")) == PROMPTS
    out = f"{bucket}/embeddings"

    encoded(config, out)
    encoded(config, out, encoders=None)
    assert len(sizes_in(out)) == 5
    found, text = Embeddings(out), TextEncoder(pipeline, torch.device("cpu"))
    assert torch.equal(found.at([4, 0]).tokens, text([PROMPTS[4], PROMPTS[0]]).tokens)
    assert torch.equal(found.null.tokens, text([""]).tokens)

    run = tiny_config(tmp_path, pipeline, f"{bucket}/prompts", "data.order=epoch", f"data.embeddings={out}")
    draws = Draws(7, 0, 0, range(4))
    assert prompts_of(run).of(draws) == prompts_of(config).of(draws) and len(check(run)) == 5
    fsspec.filesystem("s3").rm(f"{out}/shard-000002.parquet")
    with pytest.raises(UserError, match=r"shard-000002\.parquet is missing"):
        check(run)


def test_what_is_not_in_the_store_is_one_sentence(bucket):
    with pytest.raises(UserError, match=r"does not exist: set data\.prompts"):
        read_prompts(f"{bucket}/nowhere.parquet", "prompt")
    with pytest.raises(UserError, match=r"holds no _encoded\.json"):
        Embeddings(f"{bucket}/prompts")
    with pytest.raises(UserError, match="s3://nowhere"):
        read_prompts("s3://nowhere/prompts", "prompt")
