"""A bucket on a real S3 API, which may be told to fail."""

import pytest

from dipp_ray.storage import remote
from dipp_ray.storage.remote import file_system
from faulty_s3 import SLOW_S, FaultyS3, environment


@pytest.fixture(scope="package")
def s3():
    server = FaultyS3()
    yield server
    server.close()


@pytest.fixture
def bucket(s3, monkeypatch, request):
    """s3://NAME of a bucket of its own."""
    with environment(monkeypatch, s3.url):
        monkeypatch.setattr(remote, "READ_S", SLOW_S / 3)
        fs, _ = file_system("s3://any")
        name = f"b{abs(hash(request.node.nodeid)) % 10**12}"
        fs.call_s3("create_bucket", Bucket=name)
        yield f"s3://{name}"
