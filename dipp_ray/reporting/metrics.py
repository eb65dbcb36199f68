"""The run's numbers: metrics.jsonl, one JSON object a step, and the same for TensorBoard, with reduced sample grids.

metrics.jsonl and samples/ are the record; the TensorBoard folder is made from them and may be deleted at any time.
"""

import json
import math
import os
import time
from pathlib import Path

from dipp_ray.errors import UserError
from dipp_ray.reporting.thumbnails import reduced
from dipp_ray.storage.aside import whole_file
from dipp_ray.storage.locks import is_same

FILE = "metrics.jsonl"
GRID_SIDE = 480  # pixels, of a grid in TensorBoard


def grid_of(folder: Path, step: int) -> Path:
    """The sample grid of a step in a run's folder."""
    return folder / "samples" / f"step_{step:06d}.png"


class MetricsLog:
    """Appends to `folder`/metrics.jsonl and, if `tensorboard`, to `folder`/tensorboard.

    A last line that a killed run left half-written is removed. Raises UserError if the folder cannot be written.
    """

    def __init__(self, folder: Path, tensorboard: bool):
        self.folder = Path(folder)
        self._tensorboard = tensorboard
        self._scalars = None  # a SummaryWriter, from the first record on
        self._first_step: int | None = None  # scalars of earlier runs from here on do not count
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not _ends_clean(self.folder / FILE):
                _rewrite(self.folder, read_metrics(self.folder))
            self._file = (self.folder / FILE).open("a", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self.folder / FILE, error) from None

    def write(self, step: int, values: dict[str, float], grid: Path | None = None) -> None:
        """Append one record; `grid` is the sample grid of its step.

        A value that is not finite is null in the JSON and NaN or infinity in TensorBoard. In a folder that was removed
        nothing arrives, and nothing is raised: `stays` says so.
        """
        record: dict[str, float | None] = {"step": int(step), "time": round(time.time(), 3)}
        record |= {key: _json_number(value) for key, value in values.items()}
        try:
            if self._tensorboard and self._scalars is None and self.stays:
                self._scalars = self._open_scalars()
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
            if self._scalars and self.stays:  # its thread opens its file by name each time, and would die of the loss
                _add(self._scalars, values | {"step": record["step"], "time": record["time"]})
                if grid:
                    _add_grid(self._scalars, grid, record)
                self._scalars.flush()
        except OSError as error:
            raise _cannot_write(self.folder / FILE, error) from None

    def resume(self, step: int) -> None:
        """Drop all records beyond `step`, so that a killed and resumed run has each step once."""
        self.close()
        self._scalars, self._first_step = None, step + 1
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
        if self._scalars:
            self._scalars.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _open_scalars(self):
        from torch.utils.tensorboard import SummaryWriter  # torch, for which a report need not wait

        folder = self.folder / "tensorboard"
        fresh = not any(folder.glob("events.out.tfevents.*"))
        scalars = SummaryWriter(str(folder), purge_step=self._first_step)
        for record in read_metrics(self.folder) if fresh else []:
            _add(scalars, record)
            if (grid := grid_of(self.folder, record["step"])).exists():
                _add_grid(scalars, grid, record)
        return scalars


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


def _add(scalars, record: dict) -> None:
    for key, value in record.items():
        if key not in ("step", "time"):
            scalars.add_scalar(key, math.nan if value is None else float(value), record["step"], record["time"])


def _add_grid(scalars, path: Path, record: dict) -> None:
    """The grid at most GRID_SIDE wide, on white: TensorBoard's files hold each of them whole."""
    import numpy as np
    from PIL import Image

    picture = reduced(Image.open(path), GRID_SIDE)
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    scalars.add_image("samples", np.asarray(white.convert("RGB")), record["step"], record["time"], dataformats="HWC")


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
