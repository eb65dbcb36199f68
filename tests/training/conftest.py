"""A bucket on a real S3 API, for the tests of runs that lie in one."""

from faulty_s3 import bucket, s3

__all__ = ["bucket", "s3"]
