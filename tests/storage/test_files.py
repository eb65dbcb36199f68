"""Files in an object store, and reading what was written."""

import gc
import hashlib

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from dipp_ray.errors import UserError
from dipp_ray.storage.files import FileRecord, checksum, read_verified, remove_file, write_file


class Upload(AbstractBufferedFile):
    """As s3fs has it: the object is there once the last part is, which closing sends."""

    def _initiate_upload(self):
        self.parts = []

    def _upload_chunk(self, final=False):
        self.parts.append(self.buffer.getvalue())
        if final:
            self.fs.objects[self.path] = b"".join(self.parts)
        return True

    def discard(self):
        self.fs.discarded.append(self.path)


class ObjectStore(AbstractFileSystem):
    cachable = False

    def __init__(self):
        super().__init__()
        self.objects, self.discarded = {}, []

    def _open(self, path, mode="rb", **options):
        return Upload(self, path, mode, **options)


def broken(error: type[BaseException]):
    yield b"half"
    raise error


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_broken_upload_leaves_no_object(error):
    store = ObjectStore()
    assert write_file(store, "bucket/whole", [b"a", b"b"], "") == (2, hashlib.sha256(b"ab").hexdigest())
    with pytest.raises(error):
        write_file(store, "bucket/half", broken(error), "")
    gc.collect()
    assert store.objects == {"bucket/whole": b"ab"}
    assert store.discarded == ["bucket/half"]  # the parts that were sent would be paid for ever after


def test_what_is_not_as_it_was_written_is_refused():
    fs = MemoryFileSystem()
    size, sha256 = write_file(fs, "/files/a", [b"abc", memoryview(b"def")], "")
    record = FileRecord("a", size, sha256)
    assert (size, checksum(fs, "/files/a")) == (6, sha256)
    assert read_verified(fs, "/files/a", record) == b"abcdef"
    for other in (b"abcdeg", b"abcde", b"abcdefg"):
        write_file(fs, "/files/a", [other], "")
        with pytest.raises(UserError, match="/files/a is damaged"):
            read_verified(fs, "/files/a", record)
    remove_file(fs, "/files/a")
    remove_file(fs, "/files/a")  # another process was there before
    assert not fs.exists("/files/a")
