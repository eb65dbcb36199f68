"""A bucket on a real S3 API, which may be told to fail."""

from faulty_s3 import bucket, s3

__all__ = ["bucket", "s3"]
