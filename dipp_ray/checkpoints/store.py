"""The checkpoints of one run in a local folder or an object store: shares, commit, search, pruning.

URL/step_000200/generator/share_00_of_02.safetensors   tensors by name; each rank writes the names it was given
URL/step_000200/generator/share_00_of_02.json          counters
URL/step_000200/COMMITTED.json                          written last: the checkpoint exists when this file does
URL/best.json                                           step and value of the best by the held-out reward
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from fsspec.core import url_to_fs
from safetensors.torch import load

from dipp_ray.checkpoints.tensors import safetensors_chunks
from dipp_ray.errors import UserError
from dipp_ray.storage.files import FileRecord, checksum, read_verified, remove_file, write_file

# 2: the record holds the settings of the trajectory. 1 held their hash alone, and is read as ever.
FORMAT, READ = 2, (1, 2)
COMMITTED = "COMMITTED.json"
BEST = "best.json"
FULL = "free some, or point checkpoint.url elsewhere; every checkpoint committed before is intact"
STEP = re.compile(r"^step_(\d{6,})$")
SHARE = re.compile(r"^(?P<group>[a-z_]+)/share_(?P<share>\d+)_of_(?P<shares>\d+)\.(?P<kind>safetensors|json)$")


def group_of(file: FileRecord) -> str:
    """The group whose share a checkpoint's file is."""
    match = SHARE.match(file.path)
    assert match is not None, "_check_shares has looked at it"
    return match["group"]


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its step, what the run recorded with it, and its files."""

    step: int
    record: dict = field(hash=False)
    files: tuple[FileRecord, ...]

    @property
    def groups(self) -> list[str]:
        return sorted({group_of(file) for file in self.files})


@dataclass(frozen=True)
class Best:
    step: int
    value: float


class CheckpointStore:
    """The checkpoints under `url` (a folder, or any fsspec URL such as s3://bucket/run/checkpoints).

    `say` is told why a checkpoint was passed over. `options` go to fsspec (an endpoint, for one).
    """

    def __init__(self, url: str, say: Callable[[str], None] = print, **options):
        self.url = str(url)
        self.say = say
        # No listings from memory: other processes write here too.
        self.fs, root = url_to_fs(self.url, use_listings_cache=False, **options)
        self.root = root.rstrip("/")

    def folder(self, step: int) -> str:
        """The path of one step's folder on the file system."""
        return f"{self.root}/step_{step:06d}"

    # -- writing ---------------------------------------------------------------------------------------------------

    def write_share(
        self, step: int, group: str, share: int, shares: int, tensors: dict[str, torch.Tensor], counters: dict
    ) -> list[FileRecord]:
        """Write share `share` (from 0) of `shares` of one group: whole tensors by name, and counters (JSON).

        Names must not overlap between the shares of a group; a counter that two shares hold must be equal in both.
        Raises UserError when the disk is full. A step that is written anew is no longer committed.
        """
        if not 0 <= share < shares:
            raise ValueError(f"share {share} of {shares} does not exist: shares count from 0")
        remove_file(self.fs, f"{self.folder(step)}/{COMMITTED}")
        name = f"{group}/share_{share:02d}_of_{shares:02d}"
        if not SHARE.match(f"{name}.json"):
            raise ValueError(f"'{group}' is no group's name: use a to z and _")
        return [
            self._write(step, f"{name}.safetensors", safetensors_chunks(tensors)),
            self._write(step, f"{name}.json", [_json(counters)]),
        ]

    def commit(self, step: int, record: dict, files: list[FileRecord]) -> Checkpoint:
        """Make the checkpoint exist: all `files` of all ranks are there, and COMMITTED.json names them.

        `record` is JSON: what the run remembers, and what `latest` is to know it by. Raises UserError
        when a share is missing or not of its recorded size, or when the disk is full.
        """
        checkpoint = Checkpoint(step, dict(record), tuple(sorted(files, key=lambda file: file.path)))
        _check_shares(self.folder(step), checkpoint.files)
        if fault := self._fault(checkpoint):
            raise UserError(f"step {step} cannot be committed: {fault}; it does not count, earlier ones do")
        # Left by an earlier attempt at this step with another group size.
        named = {f"{self.folder(step)}/{file.path}" for file in files}
        for path in self.fs.find(self.folder(step)):
            if path not in named:
                remove_file(self.fs, path)
        body = {"format": FORMAT, "step": step, "record": record, "files": [asdict(file) for file in checkpoint.files]}
        write_file(self.fs, f"{self.folder(step)}/{COMMITTED}", [_json(body)], FULL)
        return checkpoint

    def mark_best(self, step: int, value: float) -> None:
        """Remember `step` as the best so far; `value` is its held-out reward. Pruning spares it."""
        if self.at(step) is None:
            raise ValueError(f"step {step} has no committed checkpoint in {self.url}")
        write_file(self.fs, f"{self.root}/{BEST}", [_json({"step": step, "value": value})], FULL)

    def prune(self, keep: int) -> list[int]:
        """Delete all but the newest `keep` whole checkpoints and the best; returns the steps that went.

        What is newer than the newest whole checkpoint is being written and stays; without a whole one nothing goes.
        """
        if keep < 1:
            raise ValueError(f"keep={keep}: at least one checkpoint is kept")
        whole = [step for step in self.steps() if self._is_whole(step)]
        if not whole:
            return []
        best = self.best()
        kept = {*whole[-keep:], *([best.step] if best else [])}
        gone = [step for step in self._folders() if step < whole[-1] and step not in kept]
        for step in gone:
            # First it stops being a checkpoint, then its files go: half deleted, it is never read.
            remove_file(self.fs, f"{self.folder(step)}/{COMMITTED}")
            self.fs.rm(self.folder(step), recursive=True)
        return gone

    # -- reading ---------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The committed steps, ascending; whether their files are whole is for `latest` to see."""
        return [step for step in self._folders() if self.fs.exists(f"{self.folder(step)}/{COMMITTED}")]

    def at(self, step: int) -> Checkpoint | None:
        """The committed checkpoint of `step`, or None. Raises UserError when its COMMITTED.json cannot be read."""
        path = f"{self.folder(step)}/{COMMITTED}"
        if not self.fs.exists(path):
            return None
        try:
            body = json.loads(self.fs.cat_file(path))
            if body["format"] not in READ or body["step"] != step:
                raise ValueError(f"format {body['format']}, step {body['step']}")
            files = tuple(FileRecord(**file) for file in body["files"])
            _check_shares(self.folder(step), files)
            return Checkpoint(step, body["record"], files)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no record of a checkpoint: {error}; remove that step's folder") from None

    def require(self, step: int) -> Checkpoint:
        """The committed checkpoint of `step`. Raises UserError where there is none."""
        checkpoint = self.at(step)
        if checkpoint is None:
            have = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self.url} has no committed checkpoint of step {step}; committed steps: {have}")
        return checkpoint

    def latest(
        self, difference: Callable[[dict], str | None] = lambda record: None, thorough: bool = False
    ) -> Checkpoint | None:
        """The newest committed checkpoint whose files are whole, or None when nothing was ever committed.

        Sizes are always compared; `thorough` reads every byte and compares checksums as well, so that a damaged one
        is passed over here instead of refused by `read_group`. What is passed over is said.
        `difference` says of a record in what it is not this run's, or None.
        Raises UserError when it is another run's, or when committed ones exist and none is whole:
        a run never starts again from step 0 by itself.
        """
        damaged, checkpoint = 0, None
        for step in reversed(self._folders()):
            try:
                checkpoint = self.at(step)
                fault = "it was never committed" if checkpoint is None else self._fault(checkpoint, thorough)
                damaged += checkpoint is not None and fault is not None
            except UserError as error:
                fault = str(error)
                damaged += 1
            if fault or checkpoint is None:
                self.say(f"checkpoint of step {step} passed over: {fault}")
                continue
            if differs := difference(checkpoint.record):
                raise UserError(
                    f"the checkpoints in {self.url} are of another trajectory: {differs}: choose another run.name, or "
                    "go back to the config.yaml of that run"
                )
            return checkpoint
        if damaged:
            raise UserError(
                f"{damaged} checkpoint(s) in {self.url} and none is whole: restore the files, "
                "or start anew under another run.name"
            )
        return None

    def read_group(self, checkpoint: Checkpoint, group: str) -> tuple[dict[str, torch.Tensor], dict]:
        """All tensors of one group by name (on the CPU), and its counters: the union over its shares.

        Raises UserError for a damaged or missing share, a name in two shares, or counters that disagree.
        """
        tensors: dict[str, torch.Tensor] = {}
        counters: dict = {}
        parts = [file for file in checkpoint.files if group_of(file) == group]
        if not parts:
            groups = ", ".join(checkpoint.groups)
            raise UserError(f"the checkpoint of step {checkpoint.step} has no group '{group}': it has {groups}")
        for file in parts:
            content = read_verified(self.fs, f"{self.folder(checkpoint.step)}/{file.path}", file)
            if file.path.endswith(".safetensors"):
                share = load(content)
                if twice := sorted(share.keys() & tensors.keys()):
                    raise UserError(f"step {checkpoint.step}, {group}: '{twice[0]}' lies in two shares")
                tensors |= share
            else:
                share = json.loads(content)
                if other := sorted(key for key in share.keys() & counters.keys() if share[key] != counters[key]):
                    raise UserError(f"step {checkpoint.step}, {group}: the shares disagree about '{other[0]}'")
                counters |= share
        return tensors, counters

    def best(self) -> Best | None:
        """The step marked best and its value, or None."""
        path = f"{self.root}/{BEST}"
        if not self.fs.exists(path):
            return None
        try:
            return Best(**json.loads(self.fs.cat_file(path)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error}; remove it, and the next evaluation writes it anew") from None

    # -- parts -----------------------------------------------------------------------------------------------------

    def _folders(self) -> list[int]:
        if not self.fs.exists(self.root):
            return []
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in self.fs.ls(self.root, detail=False))
        return sorted(int(match[1]) for match in map(STEP.match, names) if match)

    def _fault(self, checkpoint: Checkpoint, thorough: bool = False) -> str | None:
        """What is wrong with the files of `checkpoint`, or None."""
        for file in checkpoint.files:
            path = f"{self.folder(checkpoint.step)}/{file.path}"
            if not self.fs.exists(path):
                return f"{file.path} is missing"
            if (size := self.fs.size(path)) != file.size:
                return f"{file.path} has {size} bytes instead of {file.size}"
            if thorough and checksum(self.fs, path) != file.sha256:
                return f"{file.path} is damaged: its checksum differs"
        return None

    def _is_whole(self, step: int) -> bool:
        try:
            return self._fault(self.require(step)) is None
        except UserError:
            return False

    def _write(self, step: int, name: str, chunks) -> FileRecord:
        return FileRecord(name, *write_file(self.fs, f"{self.folder(step)}/{name}", chunks, FULL))


def newest_checkpoint(given: str) -> tuple[str, Checkpoint] | None:
    """(URL, checkpoint) of the newest whole one in a run's folder or a folder of checkpoints; None: there is none."""
    for url in (f"{given.rstrip('/')}/checkpoints", given.rstrip("/")):
        if (latest := CheckpointStore(url, say=lambda _: None).latest()) is not None:
            return url, latest
    return None


def _check_shares(folder: str, files: tuple[FileRecord, ...]) -> None:
    """Raises UserError unless each group has both files of each of its shares, once."""
    groups: dict[str, list] = {}
    for file in files:
        match = SHARE.match(file.path)
        if not match:
            raise UserError(f"{folder}: '{file.path}' is no file of a checkpoint")
        groups.setdefault(match["group"], []).append((int(match["share"]), int(match["shares"]), match["kind"]))
    if not groups:
        raise UserError(f"{folder} names no share of any group")
    for group, found in groups.items():
        shares = found[0][1]
        expected = [(share, shares, kind) for share in range(shares) for kind in ("json", "safetensors")]
        if sorted(found) != expected:
            raise UserError(f"{folder}: the shares of '{group}' are not 0 to {shares - 1}, each once")


def _json(data: dict) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False).encode()
