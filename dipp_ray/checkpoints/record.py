"""COMMITTED.json: what it says of a checkpoint, written with its own checksum and doubted when it is read."""

import json
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from dipp_ray.errors import UserError
from dipp_ray.storage.files import FileRecord
from dipp_ray.storage.hashing import hash_of_json

# 3: it holds the checksum of all that it says. 2: the record holds the settings of the trajectory. 1 held their hash
# alone. Both are read as ever.
FORMAT, READ = 3, (1, 2, 3)
SHARE = re.compile(r"^(?P<group>[a-z_]+)/share_(?P<share>\d{1,9})_of_(?P<shares>\d{1,9})\.(?P<kind>safetensors|json)$")


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its step, what the run recorded with it, and its files."""

    step: int
    record: dict = field(hash=False)
    files: tuple[FileRecord, ...]

    @property
    def groups(self) -> list[str]:
        return sorted({group_of(file) for file in self.files})

    def of_group(self, group: str, kind: str) -> list[FileRecord]:
        """The files of one group in the order of its shares: 'safetensors' or 'json'.

        Raises UserError where the checkpoint has no such group.
        """
        found = [file for file in self.files if group_of(file) == group and file.path.endswith(f".{kind}")]
        if not found:
            groups = ", ".join(self.groups)
            raise UserError(f"the checkpoint of step {self.step} has no group '{group}': it has {groups}")
        return found


@dataclass(frozen=True)
class Best:
    step: int
    value: float


def group_of(file: FileRecord) -> str:
    """The group whose share a checkpoint's file is."""
    match = SHARE.match(file.path)
    assert match is not None, "check_shares has looked at it"
    return match["group"]


def written(checkpoint: Checkpoint) -> bytes:
    """The content of COMMITTED.json."""
    body = {
        "format": FORMAT,
        "step": checkpoint.step,
        "record": checkpoint.record,
        "files": [asdict(file) for file in checkpoint.files],
    }
    return as_json(body | {"sha256": hash_of_json(body)})


def read(content: bytes, step: int) -> Checkpoint:
    """The checkpoint of `step` that COMMITTED.json describes.

    Raises ValueError with the reason where it is no such record, or not the one that was written.
    """
    body = parsed(content)
    if not isinstance(body, dict) or body.get("format") not in READ:
        raise ValueError(f"format {body.get('format')!r} is unknown" if isinstance(body, dict) else "it is no object")
    if body["format"] >= 3 and body.pop("sha256", None) != hash_of_json(body):
        raise ValueError("its checksum differs from what it says")
    if not _is_count(body.get("step")) or body["step"] != step:
        raise ValueError(f"its step is {body.get('step')!r:.40}")
    if not isinstance(body.get("record"), dict):
        raise ValueError("its record is no object")
    if not isinstance(body.get("files"), list):
        raise ValueError("its files are no list")
    files = tuple(sorted(map(_file, body["files"]), key=lambda file: file.path))
    check_shares(files)
    return Checkpoint(step, body["record"], files)


def read_best(content: bytes) -> Best:
    """What best.json says. Raises ValueError, TypeError or OverflowError where it is no such thing."""
    body = parsed(content)
    if not isinstance(body, dict) or body.keys() != {"step", "value"} or not _is_count(body["step"]):
        raise ValueError("it is no step with its value")
    return Best(body["step"], float(body["value"]))


def twice(checkpoint: Checkpoint, group: str, name: str) -> UserError:
    return UserError(f"step {checkpoint.step}, {group}: '{name}' lies in two shares")


def check_shares(files: tuple[FileRecord, ...]) -> None:
    """Raises ValueError unless each group has both files of each of its shares, once."""
    groups: dict[str, list] = {}
    for file in files:
        match = SHARE.match(file.path)
        if not match:
            raise ValueError(f"'{file.path}' is no file of a checkpoint")
        groups.setdefault(match["group"], []).append((int(match["share"]), int(match["shares"]), match["kind"]))
    if not groups:
        raise ValueError("it names no share of any group")
    for group, found in groups.items():
        shares = found[0][1]
        kinds = ("json", "safetensors")
        if len(found) != 2 * shares or sorted(found) != [
            (share, shares, kind) for share in range(shares) for kind in kinds
        ]:
            raise ValueError(f"the shares of '{group}' are not 0 to {shares - 1}, each once")


def shares_in_words(names: list[str]) -> str:
    """Of which groups files of these names are, and whether that is all of them."""
    shares: dict[str, list] = {}
    for match in filter(None, map(SHARE.match, names)):
        shares.setdefault(match["group"], []).append(int(match["shares"]))
    parts = [
        f"all {counts[0]} share(s) of {group}" if len(counts) == 2 * counts[0] else f"part of {group}"
        for group, counts in sorted(shares.items())
    ]
    return " and ".join(parts) or "no share"


def _whole(shares: int) -> list[tuple[int, int, str]]:
    return [(share, shares, kind) for share in range(shares) for kind in ("json", "safetensors")]


def parsed(content: bytes) -> Any:
    """A JSON document. Raises ValueError also where it is nested too deeply to be read."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def as_json(data: dict) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False).encode()


def _file(entry: Any) -> FileRecord:
    names = {one.name for one in fields(FileRecord)}
    if not isinstance(entry, dict) or entry.keys() != names:
        raise ValueError(f"a file of it has not {', '.join(sorted(names))}")
    if not isinstance(entry["path"], str) or not isinstance(entry["sha256"], str) or not _is_count(entry["size"]):
        raise ValueError(f"a file of it is no path with size and checksum: {entry['path']!r:.80}")
    return FileRecord(**entry)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
