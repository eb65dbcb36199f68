"""The run's numbers: metrics.jsonl, one JSON object a step, and the same, with the sample grids, for its trackers.

metrics.jsonl and samples/ are the record; what a tracker has is made from them.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dipp_ray.errors import UserError
from dipp_ray.reporting.trackers import Record, Say, Trackers
from dipp_ray.storage.aside import whole_file
from dipp_ray.storage.locks import is_same

FILE = "metrics.jsonl"


def grid_of(folder: Path, step: int) -> Path:
    """The sample grid of a step in a run's folder."""
    return folder / "samples" / f"step_{step:06d}.png"


class MetricsLog:
    """Appends to `folder`/metrics.jsonl, and tells the trackers, by name; `say` is told of one that fails.

    A last line that a killed run left half-written is removed. Raises UserError if the folder cannot be written.
    """

    def __init__(self, folder: Path, trackers: Sequence[str] = (), say: Say = print):
        self.folder = Path(folder)
        self._trackers = Trackers(trackers, self.folder, say)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not _ends_clean(self.folder / FILE):
                _rewrite(self.folder, read_metrics(self.folder))
            self._file = (self.folder / FILE).open("a", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self.folder / FILE, error) from None

    def write(self, step: int, values: dict[str, float], grid: Path | None = None) -> None:
        """Append one record; `grid` is the sample grid of its step.

        A value that is not finite is null in the JSON. In a folder that was removed nothing arrives, and nothing is
        raised: `stays` says so.
        """
        record: Record = {"step": int(step), "time": round(time.time(), 3)}
        record |= {key: _json_number(value) for key, value in values.items()}
        before = self._before(record["step"])
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self.folder / FILE, error) from None
        if self.stays:  # trackers open their files by name each time, and would make the folder anew
            self._trackers.write(record, grid, before)

    def resume(self, step: int) -> None:
        """Drop all records beyond `step`, so that a killed and resumed run has each step once."""
        self.close()
        self._trackers.resume(step)
        try:
            _rewrite(self.folder, [record for record in read_metrics(self.folder) if record["step"] <= step])
            self._file = (self.folder / FILE).open("a", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self.folder / FILE, error) from None

    @property
    def stays(self) -> bool:
        """Whether what is written still arrives in `folder`: it may have been removed."""
        return is_same(self.folder / FILE, self._file)

    def close(self) -> None:
        self._file.close()
        self._trackers.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _before(self, step: int) -> Iterator[tuple[Record, Path | None]]:
        """The records of earlier steps with their grids, read when somebody asks."""
        for record in read_metrics(self.folder):
            if record["step"] < step:
                grid = grid_of(self.folder, record["step"])
                yield record, grid if grid.exists() else None


def read_metrics(folder: Path) -> list[dict]:
    """All whole records of `folder`/metrics.jsonl in order, null as None; [] without the file.

    A half-written last line is left out. Raises UserError at a line that is no record.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return []
    records = []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number}, is no record of a step: mend or remove the line") from None
        records.append(record)
    return records


def _json_number(value: float) -> int | float | None:
    if isinstance(value, int):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else None


def _ends_clean(path: Path) -> bool:
    """Whether `path` is missing, empty or ends with a whole line."""
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _rewrite(folder: Path, records: list[dict]) -> None:
    with whole_file(folder / FILE) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in records)


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}")
