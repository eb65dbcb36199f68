"""The disk as a test sees it: every operation in order, the n-th one failing, and what a power cut leaves.

A killed process loses nothing that it has written, for the page cache is the system's. What a power cut may lose can
therefore not be tried by killing: it is worked out here from the recorded order of writes, syncs and renames.
"""

import builtins
import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest


class Disk:
    """The operations that change what lies below `root`, while `recording` runs.

    fails: number of the operation (from 0) that fails with EIO, half of it done where it is a write. With `for_good`
    all later ones fail too, as for a process that was killed there: it cleans nothing up.
    """

    def __init__(self, root: Path, fails: int | None = None, for_good: bool = False):
        self.root, self.fails, self.for_good = Path(root).resolve(), fails, for_good
        self.done: list[tuple] = []
        self.count = 0
        self.failed: str | None = None  # the first operation that failed
        self.before = _read(self.root)

    @contextmanager
    def recording(self) -> Iterator["Disk"]:
        with pytest.MonkeyPatch.context() as patch:
            for module in (builtins, io):
                patch.setattr(module, "open", self._opening(module.open))
            for name in ("fsync", "mkdir", "rmdir", "remove", "unlink", "rename", "replace"):
                patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
            yield self

    def _wrapped(self, name: str, operation):
        def wrapper(path, *arguments, **options):
            if isinstance(path, int):
                path_of = Path(os.readlink(f"/proc/self/fd/{path}"))
            elif options.get("dir_fd") is not None:
                path_of = Path(os.readlink(f"/proc/self/fd/{options['dir_fd']}"), path)
            else:
                path_of = Path(path).absolute()
            if not path_of.is_relative_to(self.root):
                return operation(path, *arguments, **options)
            self._meet(name)
            result = operation(path, *arguments, **options)
            if name == "fsync":
                self.done.append(("sync", path_of, path_of.read_bytes() if path_of.is_file() else None))
            elif name in ("rename", "replace"):
                self.done.append(("rename", path_of, Path(arguments[0]).absolute()))
            else:
                self.done.append((name.replace("unlink", "remove"), path_of))
            return result

        return wrapper

    def _opening(self, opened):
        def wrapper(path, mode="r", *arguments, **options):
            inside = not isinstance(path, int) and Path(path).absolute().is_relative_to(self.root)
            if not inside or not set(mode) & set("wax+"):
                return opened(path, mode, *arguments, **options)
            self._meet("create")
            file = opened(path, mode, *arguments, **options)
            self.done.append(("create", Path(path).absolute()))
            return _File(file, self)

        return wrapper

    def _meet(self, operation: str) -> None:
        """One more operation: its turn to fail?"""
        number, self.count = self.count, self.count + 1
        if self.fails is not None and (number == self.fails or (self.for_good and number > self.fails)):
            self.failed = self.failed or operation
            raise OSError(errno.EIO, "Input/output error")

    def after_power_cut(self, operations: int, eager: bool, into: Path) -> Path:
        """Leave in `into` what the disk may hold when the power fails after so many operations.

        A file has the bytes of its last sync. Names are as the last sync of their folder left them or, `eager`, as
        they are: a disk may write a name at once, and before the bytes that it names.
        """
        top = self.before.copy()
        for kind, path, *more in self.done[:operations]:
            folder, name = (None if path == self.root else top.at(path.parent.relative_to(self.root))), path.name
            if kind == "write":
                pass  # lost until it is synced
            elif kind == "create":
                folder.names.setdefault(name, _Bytes()).synced = b""
            elif kind == "mkdir":
                folder.names[name] = _Folder()
            elif kind in ("remove", "rmdir"):
                del folder.names[name]
            elif kind == "rename":
                top.at(more[0].parent.relative_to(self.root)).names[more[0].name] = folder.names.pop(name)
            elif more[0] is None:
                synced = top.at(path.relative_to(self.root))
                synced.on_disk = dict(synced.names)
            else:
                folder.names[name].synced = more[0]
        top.write(into, eager)
        return into


class _File:
    """An open file whose writes and whose end are operations too."""

    def __init__(self, file, disk: Disk):
        self._file, self._disk = file, disk

    def write(self, data):
        try:
            self._disk._meet("write")
        except OSError:
            self._file.write(data[: len(data) // 2])
            raise
        self._disk.done.append(("write", self._disk.root))
        return self._file.write(data)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


@dataclass
class _Bytes:
    synced: bytes = b""


@dataclass
class _Folder:
    """Its names as a process sees them, and as the disk holds them."""

    names: dict = field(default_factory=dict)
    on_disk: dict = field(default_factory=dict)

    def at(self, path: Path) -> "_Folder":
        folder = self
        for part in path.parts:
            folder = folder.names[part]
        return folder

    def copy(self) -> "_Folder":
        names = {k: v.copy() if isinstance(v, _Folder) else _Bytes(v.synced) for k, v in self.names.items()}
        return _Folder(names, dict(names))

    def write(self, into: Path, eager: bool) -> None:
        into.mkdir(parents=True)
        for name, node in (self.names if eager else self.on_disk).items():
            if isinstance(node, _Folder):
                node.write(into / name, eager)
            else:
                (into / name).write_bytes(node.synced)


def _read(path: Path) -> _Folder:
    """What lies there already, all of it on the disk."""
    names = {inner.name: _read(inner) if inner.is_dir() else _Bytes(inner.read_bytes()) for inner in path.iterdir()}
    return _Folder(names, dict(names))
