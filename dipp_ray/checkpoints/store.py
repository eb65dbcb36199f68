"""The checkpoints of one run in a local folder or an object store: shares, commit, search, pruning.

URL/step_000200/generator/share_00_of_02.safetensors   tensors by name; each rank writes the names it was given
URL/step_000200/generator/share_00_of_02.json          counters
URL/step_000200/COMMITTED.json                          written last: the checkpoint exists when this file does
URL/best.json                                           step and value of the best by the held-out reward
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from dipp_ray.checkpoints.record import (
    SHARE,
    Best,
    Checkpoint,
    as_json,
    check_shares,
    read,
    read_best,
    shares_in_words,
    twice,
    written,
)
from dipp_ray.checkpoints.tensors import TensorFile, safetensors_chunks
from dipp_ray.errors import UserError
from dipp_ray.storage.files import FileRecord, checksum, is_there, read_verified, remove_file, write_file
from dipp_ray.storage.remote import abort_uploads, asked, asks, file_system

COMMITTED = "COMMITTED.json"
BEST = "best.json"
FULL = "free some, or point checkpoint.url elsewhere; every checkpoint committed before is intact"
STEP = re.compile(r"^step_(\d{6,18})$")


class CheckpointStore:
    """The checkpoints under `url` (a folder, or any fsspec URL such as s3://bucket/run/checkpoints).

    `say` is told why a checkpoint was passed over. `options` go to fsspec. Raises StorageUnavailable where a disk or
    store fails at last.
    """

    def __init__(self, url: str, say: Callable[[str], None] = print, **options):
        self.url = str(url)
        self.say = say
        with asked(self.url):
            self.fs, self.root = file_system(self.url, **options)

    def folder(self, step: int) -> str:
        """The path of one step's folder on the file system."""
        return f"{self.root}/step_{step:06d}"

    # -- writing ---------------------------------------------------------------------------------------------------

    @asks
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
            self._write(step, f"{name}.json", [as_json(counters)]),
        ]

    @asks
    def commit(self, step: int, record: dict, files: list[FileRecord]) -> Checkpoint:
        """Make the checkpoint exist: all `files` of all ranks are there, and COMMITTED.json names them.

        `record` is JSON: what the run remembers, and what `latest` is to know it by. Raises UserError
        when a share is missing or not of its recorded size, or when the disk is full.
        """
        checkpoint = Checkpoint(step, dict(record), tuple(sorted(files, key=lambda file: file.path)))
        try:
            check_shares(checkpoint.files)
        except ValueError as error:
            raise UserError(f"step {step} cannot be committed: {error}; it does not count, earlier ones do") from None
        if fault := self._fault(checkpoint):
            raise UserError(f"step {step} cannot be committed: {fault}; it does not count, earlier ones do")
        # Left by an earlier attempt at this step with another group size.
        named = {f"{self.folder(step)}/{file.path}" for file in files}
        for path in self.fs.find(self.folder(step)):
            if path not in named:
                remove_file(self.fs, path)
        write_file(self.fs, f"{self.folder(step)}/{COMMITTED}", [written(checkpoint)], FULL)
        return checkpoint

    @asks
    def mark_best(self, step: int, value: float) -> None:
        """Remember `step` as the best so far; `value` is its held-out reward. Pruning spares it."""
        if self.at(step) is None:
            raise ValueError(f"step {step} has no committed checkpoint in {self.url}")
        write_file(self.fs, f"{self.root}/{BEST}", [as_json({"step": step, "value": value})], FULL)

    @asks
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
        abort_uploads(
            self.fs, self.root, lambda path: _step_of(path.partition("/")[0]) <= whole[-1]
        )  # of killed writers
        return gone

    # -- reading ---------------------------------------------------------------------------------------------------

    @asks
    def steps(self) -> list[int]:
        """The committed steps, ascending; whether their files are whole is for `latest` to see."""
        return [step for step in self._folders() if is_there(self.fs, f"{self.folder(step)}/{COMMITTED}")]

    @asks
    def at(self, step: int) -> Checkpoint | None:
        """The committed checkpoint of `step`, or None. Raises UserError when its COMMITTED.json cannot be read."""
        path = f"{self.folder(step)}/{COMMITTED}"
        if not is_there(self.fs, path):
            return None
        try:
            return read(self.fs.cat_file(path), step)
        except ValueError as error:
            raise UserError(f"{path} is no record of a checkpoint: {error}; remove that step's folder") from None

    def require(self, step: int) -> Checkpoint:
        """The committed checkpoint of `step`. Raises UserError where there is none."""
        checkpoint = self.at(step)
        if checkpoint is None:
            have = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self.url} has no committed checkpoint of step {step}; committed steps: {have}")
        return checkpoint

    @asks
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
        damaged, uncommitted = 0, []
        for step in reversed(self._folders()):
            try:
                checkpoint = self.at(step)
                if checkpoint is None:
                    uncommitted.append(step)
                    continue
                fault = self._fault(checkpoint, thorough)
            except UserError as error:
                fault = str(error)
            if fault:
                damaged += 1
                self.say(f"checkpoint of step {step} passed over: {fault}")
                continue
            for late in uncommitted:
                self.say(f"checkpoint of step {late} passed over: it was never committed")
            assert checkpoint is not None
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
        if uncommitted:
            lie = "; ".join(f"step {step} with {self._lies(step)}" for step in reversed(uncommitted))
            self.say(f"{self.url} holds no {COMMITTED}, so nothing there is resumed and step 0 is next: {lie}")
        return None

    def read_group(
        self, checkpoint: Checkpoint, group: str, wanted: Callable[[str], bool] = lambda name: True
    ) -> tuple[dict[str, torch.Tensor], dict]:
        """The wanted tensors of one group by name (on the CPU), and its counters: the union over its shares.

        Raises UserError for a damaged or missing share, a name in two shares, or counters that disagree.
        """
        tensors: dict[str, torch.Tensor] = {}
        for file in checkpoint.of_group(group, "safetensors"):
            with self.open_share(checkpoint, file) as share:
                for kept, tensor in share.tensors(wanted):
                    if kept.name in tensors:
                        raise twice(checkpoint, group, kept.name)
                    tensors[kept.name] = tensor
        return tensors, self.counters(checkpoint, group)

    @asks
    def counters(self, checkpoint: Checkpoint, group: str) -> dict:
        """The counters of one group. Raises UserError where its shares are damaged, or disagree."""
        counters: dict = {}
        for file in checkpoint.of_group(group, "json"):
            share = json.loads(read_verified(self.fs, f"{self.folder(checkpoint.step)}/{file.path}", file))
            if other := sorted(key for key in share.keys() & counters.keys() if share[key] != counters[key]):
                raise UserError(f"step {checkpoint.step}, {group}: the shares disagree about '{other[0]}'")
            counters |= share
        return counters

    @contextmanager
    def open_share(self, checkpoint: Checkpoint, file: FileRecord) -> Iterator[TensorFile]:
        """One share's tensors, to be read once from the first to the last, which verifies them."""
        path = f"{self.folder(checkpoint.step)}/{file.path}"
        with asked(self.url):
            try:
                opened = self.fs.open(path, "rb")
            except FileNotFoundError:
                raise UserError(f"{path} is missing: resume from an earlier step") from None
            with opened:
                yield TensorFile(opened, path, file)

    @asks
    def best(self) -> Best | None:
        """The step marked best and its value, or None."""
        path = f"{self.root}/{BEST}"
        if not is_there(self.fs, path):
            return None
        try:
            return read_best(self.fs.cat_file(path))
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{path} is damaged: {error}; remove it, and the next evaluation writes it anew") from None

    # -- parts -----------------------------------------------------------------------------------------------------

    def _folders(self) -> list[int]:
        try:
            found = self.fs.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in found)
        return sorted(step for step in map(_step_of, names) if step >= 0)

    def _fault(self, checkpoint: Checkpoint, thorough: bool = False) -> str | None:
        """What is wrong with the files of `checkpoint`, or None."""
        for file in checkpoint.files:
            path = f"{self.folder(checkpoint.step)}/{file.path}"
            if not is_there(self.fs, path):
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

    def _lies(self, step: int) -> str:
        """What lies in the folder of a step that was never committed."""
        start = f"{self.folder(step)}/"
        return shares_in_words([path.partition(start)[2] for path in self.fs.find(self.folder(step))])

    def _write(self, step: int, name: str, chunks) -> FileRecord:
        return FileRecord(name, *write_file(self.fs, f"{self.folder(step)}/{name}", chunks, FULL))


def _step_of(name: str) -> int:
    """The step whose folder is called so; -1 of another file."""
    match = STEP.match(name)
    return int(match[1]) if match else -1


def newest_checkpoint(given: str) -> tuple[str, Checkpoint] | None:
    """(URL, checkpoint) of the newest whole one in a run's folder or a folder of checkpoints; None: there is none."""
    for url in (f"{given.rstrip('/')}/checkpoints", given.rstrip("/")):
        if (latest := CheckpointStore(url, say=lambda _: None).latest()) is not None:
            return url, latest
    return None
