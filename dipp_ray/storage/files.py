"""Whole files on any fsspec file system: written with size and checksum, read with both verified."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from dipp_ray.errors import UserError
from dipp_ray.storage.aside import sync, whole_file
from dipp_ray.storage.remote import lacks_bucket

BLOCK = 8 * 1024 * 1024  # bytes read or written at a time


@dataclass(frozen=True)
class FileRecord:
    """One file of a folder: path relative to it, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


class Damaged(UserError):
    """A file whose bytes are not those that were committed."""

    def __init__(self, path: str):
        super().__init__(f"{path} is damaged: its bytes are not those that were committed; resume from an earlier step")


def write_file(fs, path: str, chunks: Iterable[bytes | memoryview], remedy: str) -> tuple[int, str]:
    """Write `chunks` as the file `path`; returns (size in bytes, SHA-256). Otherwise as `whole_object`."""
    with whole_object(fs, path, remedy) as file:
        return _copy(chunks, file)


@contextmanager
def whole_object(fs, path: str, remedy: str) -> Iterator[IO[bytes]]:
    """Yields a file to write. The name `path` appears when the block ends well and all of it is there.

    Raises UserError with `remedy` when a local disk is full or refuses; what was written before stays, and nothing is
    left of this file.
    """
    if isinstance(fs, LocalFileSystem):
        with whole_file(Path(path), remedy) as aside, closing(fs.open(str(aside), "wb")) as file:
            yield file
        return
    # An object store shows an object once its upload is complete, and has no folders to make: s3fs would make a bucket.
    file = fs.open(path, "wb")
    try:
        yield file
        file.close()
    except BaseException:
        # Closing a half-written upload would complete it under its final name.
        if isinstance(file, AbstractBufferedFile):
            file.closed = True  # or it finishes the upload when it is collected
        with suppress(Exception):  # the error that matters is on its way up
            file.discard()
        raise


def is_there(fs, path: str) -> bool:
    """Whether there is a file or folder `path`. What cannot be asked is raised, as where there is no such bucket:
    fsspec's `exists` calls it absent."""
    try:
        fs.info(path)
    except FileNotFoundError as error:
        if lacks_bucket(error):
            raise
        return False
    return True


def remove_file(fs, path: str) -> None:
    """Remove `path` if it is there; on a local disk its name is gone from the disk when this returns.

    Several processes may do it at once.
    """
    try:
        if is_there(fs, path):
            fs.rm_file(path)
    except FileNotFoundError:
        pass
    if isinstance(fs, LocalFileSystem) and Path(path).parent.is_dir():
        sync(Path(path).parent)


def read_blocks(fs, path: str) -> Iterator[bytes]:
    """The file in blocks of at most BLOCK bytes."""
    with fs.open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block


def read_verified(fs, path: str, record: FileRecord) -> bytes:
    """The bytes of `path`. Raises Damaged when size or checksum is not that of `record`."""
    content, digest = bytearray(), hashlib.sha256()
    for block in read_blocks(fs, path):
        digest.update(block)
        content += block
        if len(content) > record.size:
            break
    if len(content) != record.size or digest.hexdigest() != record.sha256:
        raise Damaged(path)
    return bytes(content)


def checksum(fs, path: str) -> str:
    """SHA-256 of the file, in hex, without holding it in memory."""
    with fs.open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(chunks: Iterable[bytes | memoryview], file) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        for start in range(0, len(chunk), BLOCK):  # a store's writer would send all of a chunk as one part
            part = chunk[start : start + BLOCK]
            file.write(part)
            digest.update(part)
            size += len(part)
    return size, digest.hexdigest()
