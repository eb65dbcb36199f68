"""Whole files on any fsspec file system: written with size and checksum, read with both verified."""

import errno
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from dipp_ray.errors import UserError
from dipp_ray.storage.aside import aside_of, make_folder, rename_file, sync

BLOCK = 8 * 1024 * 1024  # bytes read at a time


@dataclass(frozen=True)
class FileRecord:
    """One file of a folder: path relative to it, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


def write_file(fs, path: str, chunks: Iterable[bytes | memoryview], remedy: str) -> tuple[int, str]:
    """Write `chunks` as the file `path`; returns (size in bytes, SHA-256). The name appears when all of it is there.

    Raises UserError with `remedy` when the disk is full; what was written before stays, and nothing is left of this
    file.
    """
    # An object store shows an object once its upload is complete. A local file is written aside and renamed.
    local = isinstance(fs, LocalFileSystem)
    aside = str(aside_of(Path(path))) if local else path
    digest, size = hashlib.sha256(), 0
    file = None
    try:
        if local:
            make_folder(Path(path).parent)
        else:
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        file = fs.open(aside, "wb")
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.close()
        if local:
            rename_file(Path(aside), Path(path))
    except BaseException as error:
        if file is not None:
            _abandon(file, Path(aside) if local else None)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left for {path}: {remedy}") from None
        raise
    return size, digest.hexdigest()


def remove_file(fs, path: str) -> None:
    """Remove `path` if it is there; on a local disk its name is gone from the disk when this returns.

    Several processes may do it at once.
    """
    try:
        if fs.exists(path):
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
    with fs.open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _abandon(file, aside: Path | None) -> None:
    # Closing a half-written upload would complete it under its final name, so it is discarded where that exists.
    try:
        if aside is None and hasattr(file, "discard"):
            file.discard()
            file.closed = True  # or fsspec tries to finish the upload when the object is collected
        else:
            file.close()
    except OSError:
        pass  # a full disk refuses the last flush as well; the error that matters is on its way up
    if aside is not None:
        aside.unlink(missing_ok=True)
