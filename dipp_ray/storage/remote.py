"""Stores beyond the disk, s3:// above all: opened in one place, asked again with patience, refused in one sentence.

Endpoint and credentials are those of the standard environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_PROFILE ...).
A request that fails for a moment (a 5xx, throttling, a reset, a time-out) is made again, ATTEMPTS times in all, after
waits that grow to 20 s.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any
from uuid import uuid4

from fsspec.core import url_to_fs

from dipp_ray.errors import StorageUnavailable, UserError
from dipp_ray.storage.cache import is_remote

ATTEMPTS = 6
CONNECT_S, READ_S = 10, 30  # without a byte from the store
REFUSED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "AccessDenied", "Forbidden", "403")
TOO_MUCH = ("SlowDown", "Throttl", "LimitExceeded", "TooManyRequests", "RequestTimeout")  # whatever their status
UNREACHED = ("Endpoint", "Connect", "Timeout", "Payload", "IncompleteRead", "Streaming")
LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs", "pyarrow")


def file_system(url: str, attempts: int | None = None, **options: Any) -> tuple[Any, str]:
    """(fsspec's file system, path on it) of a path or URL. Nothing is asked yet, and nothing remembered of listings:
    other processes write there too."""
    attempts = attempts or ATTEMPTS
    if url.startswith("s3://"):
        retries = {"mode": "standard", "total_max_attempts": attempts}
        options = {
            "config_kwargs": {"retries": retries, "connect_timeout": CONNECT_S, "read_timeout": READ_S},
            "max_concurrency": 4,  # parts of 50 MB that a writer sends at a time
        } | options
    fs, path = url_to_fs(url, use_listings_cache=False, **options)
    if url.startswith("s3://"):
        fs.retries = min(2, attempts)  # s3fs counts by itself, above the library that counts already
    return fs, path.rstrip("/")


def in_one_sentence(error: Exception, url: str) -> str:
    """What is wrong with a disk or a store, and what to set."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    code, status = _answer(error)
    why = text or kind
    if not is_remote(url):
        return f"{url}: {kind}: {text}: correct the path, the rights to it, or what its disk lacks"
    if "Credentials" in kind or "Credentials" in text or "ProfileNotFound" in kind:
        return f"{url}: no credentials for it: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if lacks_bucket(error):
        return f"{url}: there is no such bucket: make it, or correct the URL"
    if isinstance(error, PermissionError) or any(word in f"{code} {text}" for word in REFUSED):
        return f"{url}: the store refuses these credentials ({why}): correct them, or the rights to it"
    if "ReadTimeout" in kind or status >= 500 or any(word in code for word in TOO_MUCH):
        return f"{url}: its store fails, or has too much to do ({why}): wait until it answers, or ask who runs it"
    if any(word in kind for word in UNREACHED) or "Could not connect" in text:
        return f"{url}: its store cannot be reached ({why}): set AWS_ENDPOINT_URL, or correct it"
    return f"{url}: {kind}: {text}: correct the URL, or the rights to it"


def of_storage(error: Exception) -> bool:
    """Whether an error is a disk's or a store's, and no fault of the program."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in LIBRARIES


def lacks_bucket(error: Exception) -> bool:
    """Whether a store says that there is no such bucket."""
    said = f"{_answer(error)[0]} {error}"
    return "NoSuchBucket" in said or "bucket does not exist" in said


def _answer(error: BaseException | None) -> tuple[str, int]:
    """(the store's own code, HTTP status) of the answer that an error came of; ('', 0) where there was none."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(answer.get("Error", {}).get("Code", "")), status
        error = error.__cause__
    return "", 0


@contextmanager
def asked(url: str) -> Iterator[None]:
    """What a disk or store raises at last becomes StorageUnavailable, in one sentence."""
    try:
        yield
    except (UserError, StorageUnavailable):
        raise
    except Exception as error:
        if not of_storage(error):
            raise
        goes_on = "what was committed before is intact, and the same command goes on from there"
        raise StorageUnavailable(f"{in_one_sentence(error, url)}; {goes_on}") from error


def asks(method):
    """A method of an object with `url`, under `asked`."""

    @wraps(method)
    def wrapper(self, *arguments, **options):
        with asked(self.url):
            return method(self, *arguments, **options)

    return wrapper


def require_store(url: str, key: str) -> None:
    """Write a few bytes under `url` and remove them. Raises UserError, at the latest after a few tries, that names the
    setting `key`, where that cannot be: for want of credentials, of rights, or of the bucket."""
    if not is_remote(url):
        return
    try:
        fs, root = file_system(url, attempts=3)
        if url.startswith("s3://"):
            fs.call_s3("head_bucket", Bucket=fs.split_path(root)[0])
        name = f"{root}/.probe-{uuid4().hex}"
        fs.pipe_file(name, b"dipp-ray")
        fs.rm_file(name)
    except FileNotFoundError as error:
        raise UserError(f"{key}={in_one_sentence(Exception(f'NoSuchBucket: {error}'), url)}") from None
    except Exception as error:  # each store's library raises classes of its own
        raise UserError(f"{key}={in_one_sentence(error, url)}") from None


def abort_uploads(fs: Any, root: str, orphaned: Callable[[str], bool]) -> list[str]:
    """Abort the multipart uploads under `root`, begun and never ended, whose paths below it are `orphaned`: nobody sees
    their parts, and they are paid for. Returns those paths. Other stores than S3 have none; who may not list them
    leaves them, for nothing rests on it."""
    if not hasattr(fs, "call_s3"):
        return []
    bucket, prefix, _ = fs.split_path(root)
    start = f"{prefix}/" if prefix else ""
    found: list[tuple[str, str]] = []
    marker: dict[str, str] = {}
    while True:
        try:
            page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=start, **marker)
        except PermissionError:
            return []
        found += [(upload["Key"], upload["UploadId"]) for upload in page.get("Uploads", [])]
        if not page.get("IsTruncated"):
            break
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
    found = [(name, upload) for name, upload in found if orphaned(name.removeprefix(start))]
    for name, upload in found:
        with suppress(FileNotFoundError):  # ended, or aborted, in the meantime
            fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=name, UploadId=upload)
    return [name.removeprefix(start) for name, _ in found]
