"""A folder that lies in a store, worked on in a copy on this machine's disk: fetched once, pushed now and then.

A store has no appending, no renaming and no locks; the copy has, and the store holds what it was at the last push. What
was pushed or fetched is noted in the copy, so that a push sends changed files alone.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dipp_ray.errors import UserError
from dipp_ray.storage.aside import make_folder, whole_file
from dipp_ray.storage.cache import copy_of
from dipp_ray.storage.files import read_blocks, remove_file
from dipp_ray.storage.locks import in_turn
from dipp_ray.storage.remote import abort_uploads, asks, file_system

NOTED = ".pushed.json"
LAST = ("model_index.json", "exported.json")  # what makes a folder a pipeline: sent last, and taken away first


def fetched(url: str, without: Iterable[str] = ()) -> Path:
    """This machine's copy of a file's or folder's newest state, whole when this returns.

    without: folders in it that are left out. Raises UserError where nothing lies there.
    """
    return Mirror(url, without=without).fetch()


class Mirror:
    """The store's folder `url`, its copy, and the folders in it `without` which either is looked at."""

    def __init__(self, url: str, without: Iterable[str] = ()):
        self.url, self.without = url.rstrip("/"), tuple(without)
        self.copy = copy_of(self.url)
        self.fs, self.root = file_system(self.url)

    @asks
    def fetch(self, required: bool = True) -> Path:
        """Make the copy what the store holds; returns its path, that of a file where `url` is one.

        Raises UserError where nothing lies there and something is `required`.
        """
        make_folder(self.copy.parent)
        with in_turn(self.copy.parent / ".lock", lambda: None):
            found, noted = self._found(), self._noted()
            if required and not found:
                raise UserError(f"{self.url} does not exist: nothing lies there")
            for name, there in found.items():
                if noted.get(name, {}).get("etag") != there["etag"] or not self._is_as_noted(name, noted):
                    self._fetch_file(name, there["size"])
            here = self._files()
            for name in here.keys() - found.keys():
                self._at(name).unlink()
            self._note(found, self._files())
        return self.copy

    @asks
    def push(self) -> None:
        """Send what changed in the copy, and remove from the store what is no longer in it."""
        noted, here = self._noted(), self._files()
        changed = {name for name in here if not self._is_as_noted(name, noted)}
        gone = noted.keys() - here.keys()
        if not changed and not gone:
            return
        folders = {name.split("/", 1)[0] for name in changed | gone}
        # While its files change, a folder is no pipeline.
        marks = {name for name in noted if name.rsplit("/", 1)[-1] in LAST and name.split("/", 1)[0] in folders}
        # Of these files alone: of another, somebody else's upload may be under way.
        abort_uploads(self.fs, self.root, lambda name: name in changed | gone | marks)
        for name in sorted(gone | marks, key=_order, reverse=True):
            remove_file(self.fs, f"{self.root}/{name}")
        for name in sorted(changed | (marks & here.keys()), key=_order):
            self.fs.put_file(str(self._at(name)), f"{self.root}/{name}")
        self._note(self._found(), here)

    @asks
    def abort_left(self) -> None:
        """Abort every upload that was begun in the store's folder and not ended: for who alone writes there from now
        on."""
        abort_uploads(self.fs, self.root, lambda name: name.split("/", 1)[0] not in self.without)

    def _found(self) -> dict[str, dict[str, Any]]:
        """The files of the store by their paths in the folder; '' is the folder itself, where it is a file."""
        found = {}
        for path, about in self.fs.find(self.root, detail=True).items():
            name = path.removeprefix(self.root).lstrip("/")
            if self._counts(name) and about["type"] == "file":
                found[name] = {"size": about["size"], "etag": about.get("ETag") or str(about["size"])}
        return found

    def _files(self) -> dict[str, list[int]]:
        """Those of the copy, with what tells a changed one."""
        if self.copy.is_file():
            return {"": _stamp(self.copy)}
        paths = (path for path in self.copy.rglob("*") if path.is_file())
        names = (path.relative_to(self.copy).as_posix() for path in paths)
        return {name: _stamp(self._at(name)) for name in names if self._counts(name)}

    def _at(self, name: str) -> Path:
        return self.copy / name if name else self.copy

    def _counts(self, name: str) -> bool:
        return not name.rsplit("/", 1)[-1].startswith(".") and name.split("/", 1)[0] not in self.without

    def _fetch_file(self, name: str, size: int) -> None:
        with whole_file(self._at(name)) as aside, aside.open("wb") as file:
            for block in read_blocks(self.fs, f"{self.root}/{name}".rstrip("/")):
                file.write(block)
            if file.tell() != size:
                raise OSError(f"{file.tell()} of the {size} bytes of {name or self.url} came")

    def _note(self, found: dict[str, dict[str, Any]], here: dict[str, list[int]]) -> None:
        noted = {name: {**about, "here": here[name]} for name, about in found.items() if name in here}
        with whole_file(self._notes) as aside:
            aside.write_text(json.dumps(noted))

    @property
    def _notes(self) -> Path:
        return self.copy.with_name(f"{self.copy.name}{NOTED}")

    def _noted(self) -> dict[str, dict[str, Any]]:
        try:
            return json.loads(self._notes.read_text())
        except (OSError, ValueError):
            return {}

    def _is_as_noted(self, name: str, noted: dict[str, dict[str, Any]]) -> bool:
        return name in noted and self._at(name).is_file() and noted[name]["here"] == _stamp(self._at(name))


def _order(name: str) -> tuple[bool, bool, str]:
    last = name.rsplit("/", 1)[-1]
    return last in LAST, last == LAST[1], name


def _stamp(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]
