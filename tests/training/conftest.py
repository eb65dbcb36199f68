"""A bucket on a real S3 API, for the tests of runs that lie in one."""

import pytest

from dipp_ray.storage.remote import file_system
from faulty_s3 import FaultyS3, environment


@pytest.fixture(scope="package")
def s3():
    server = FaultyS3()
    yield server
    server.close()


@pytest.fixture
def bucket(s3, monkeypatch, request):
    """s3://NAME of a bucket of its own."""
    with environment(monkeypatch, s3.url):
        fs, _ = file_system("s3://any")
        name = f"r{abs(hash(request.node.nodeid)) % 10**12}"
        fs.call_s3("create_bucket", Bucket=name)
        yield f"s3://{name}"
