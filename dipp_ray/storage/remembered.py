"""SHA-256 of large files, remembered in the user's cache: what has not changed since is not read again."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dipp_ray.storage.cache import cache_folder
from dipp_ray.storage.hashing import hash_of_file

SMALL = 1 << 20  # bytes; a smaller file is read again
BLOCK = 8 << 20  # bytes read at a time
# A file that is younger than this is not remembered: it may yet be written to within the same tick of its clock.
SETTLED_S = 2.0


def remembered_hash(path: Path, tell: Callable[[int], None] = lambda read: None) -> str:
    """The hash of a local file, read only if its path, size or time of change is new. `tell` gets the bytes of each
    block that is read. Raises OSError where it cannot be read."""
    path = path.resolve()
    known = _known_by(path)
    if known["size"] < SMALL:
        return hash_of_file(path)
    note = cache_folder() / "hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(note.read_text())
        if {key: found[key] for key in known} == known:
            return str(found["sha256"])
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            tell(len(block))
    if _known_by(path) == known and time.time() - known["mtime_ns"] / 1e9 > SETTLED_S:
        with suppress(OSError):  # without a cache it is read every time
            note.parent.mkdir(parents=True, exist_ok=True)
            aside = note.with_suffix(f".{os.getpid()}")
            aside.write_text(json.dumps(known | {"sha256": digest.hexdigest()}))
            os.replace(aside, note)
    return digest.hexdigest()


def _known_by(path: Path) -> dict:
    stat = path.stat()
    return {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
