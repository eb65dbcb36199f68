"""Whole files on any fsspec file system: written with size and checksum, read with both verified."""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fsspec.implementations.local import LocalFileSystem

from dipp_ray.errors import UserError

BLOCK = 8 * 1024 * 1024  # bytes read or hashed at a time


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint: path relative to the step's folder, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


def write_file(fs, path: str, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write `chunks` as the file `path`; answers (size in bytes, SHA-256). The name appears when all of it is there.

    Raises UserError when the disk is full; what was written before stays, and nothing is left of this file.
    """
    # An object store shows an object once its upload is complete. A local file is written aside and renamed.
    local = isinstance(fs, LocalFileSystem)
    aside = f"{path}.part" if local else path
    digest, size = hashlib.sha256(), 0
    file = None
    try:
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        file = fs.open(aside, "wb")
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        if local:
            file.flush()
            os.fsync(file.fileno())
        file.close()
        if local:
            os.replace(aside, path)
            _sync_folder(path.rsplit("/", 1)[0])
    except BaseException as error:
        if file is not None:
            _abandon(fs, file, aside)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left for {path}: free some, or point checkpoint.url elsewhere; "
                "every checkpoint committed before is intact"
            ) from None
        raise
    return size, digest.hexdigest()


def read_blocks(fs, path: str) -> Iterator[bytes]:
    """The file in blocks of at most BLOCK bytes."""
    with fs.open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block


def read_verified(fs, path: str, record: FileRecord) -> bytes:
    """The bytes of `path`. Raises UserError when size or checksum is not that of `record`."""
    content, digest = bytearray(), hashlib.sha256()
    for block in read_blocks(fs, path):
        digest.update(block)
        content += block
        if len(content) > record.size:
            break
    if len(content) != record.size or digest.hexdigest() != record.sha256:
        raise UserError(f"{path} is damaged: its bytes are not those that were committed; resume from an earlier step")
    return bytes(content)


def checksum(fs, path: str) -> str:
    """SHA-256 of the file, in hex, without holding it in memory."""
    digest = hashlib.sha256()
    for block in read_blocks(fs, path):
        digest.update(block)
    return digest.hexdigest()


def _abandon(fs, file, path: str) -> None:
    # Closing a half-written upload would complete it under its final name, so it is discarded where that exists.
    try:
        if hasattr(file, "discard") and not isinstance(fs, LocalFileSystem):
            file.discard()
            file.closed = True  # or fsspec tries to finish the upload when the object is collected
        else:
            file.close()
    except OSError:
        pass  # a full disk refuses the last flush as well; the error that matters is on its way up
    if isinstance(fs, LocalFileSystem) and os.path.exists(path):
        os.remove(path)


def _sync_folder(folder: str) -> None:
    # The rename itself must survive a power cut, and it lives in the folder.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
