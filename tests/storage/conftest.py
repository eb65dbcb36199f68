"""A bucket on a real S3 API, which may be told to fail."""

import pytest

from dipp_ray.storage import remote
from faulty_s3 import SLOW_S, bucket, s3

__all__ = ["bucket", "s3"]


@pytest.fixture(autouse=True)
def _short_reads(monkeypatch):
    """A reply that is slow here is later than is waited for."""
    monkeypatch.setattr(remote, "READ_S", SLOW_S / 3)
