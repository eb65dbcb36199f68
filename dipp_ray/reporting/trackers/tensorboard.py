"""TensorBoard: `tensorboard/` in the run's folder. It is made from the record, and may be deleted at any time."""

import math
from pathlib import Path

from dipp_ray.reporting.thumbnails import reduced

GRID_SIDE = 480  # pixels, of a grid: its files hold each of them whole


class TensorBoard:
    """`first_step`: scalars of earlier processes from here on do not count."""

    PACKAGE, REMOTE = "tensorboard", False

    def __init__(self, folder: Path, first_step: int | None):
        from torch.utils.tensorboard import SummaryWriter  # torch, for which a report need not wait

        own = folder / "tensorboard"
        self.fresh = not any(own.glob("events.out.tfevents.*"))
        self._scalars = SummaryWriter(str(own), purge_step=first_step)

    @staticmethod
    def check() -> None:
        pass

    def write(self, record: dict, grid: Path | None) -> None:
        step, time = record["step"], record["time"]
        for key, value in record.items():
            if key not in ("step", "time"):
                self._scalars.add_scalar(key, math.nan if value is None else float(value), step, time)
        if grid:
            self._scalars.add_image("samples", _on_white(grid), step, time, dataformats="HWC")
        self._scalars.flush()

    def close(self) -> None:
        self._scalars.close()


def _on_white(path: Path):
    """The grid at most GRID_SIDE wide, uint8 [H, W, 3]."""
    import numpy as np
    from PIL import Image

    picture = reduced(Image.open(path), GRID_SIDE)
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return np.asarray(white.convert("RGB"))
