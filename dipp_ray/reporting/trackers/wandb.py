"""Weights & Biases, set by its own variables: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline, WANDB_API_KEY.

Its files lie in `wandb/` of the run's folder; `wandb sync` uploads those of an offline run.
"""

import math
import os
import secrets
from pathlib import Path
from typing import Any

from dipp_ray.errors import UserError
from dipp_ray.reporting.trackers.same_run import configuration_of, id_of, keep_id

PROJECT = "dipp-ray"  # where WANDB_PROJECT names none


class Wandb:
    """One W&B run for a run, also after it was resumed. W&B keeps of a step that is told twice the first."""

    PACKAGE, REMOTE = "wandb", True

    def __init__(self, folder: Path, first_step: int | None):
        import wandb

        known = id_of(folder, "wandb", first_step)
        self.fresh = known is None
        self._wandb = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=known or secrets.token_hex(8),
            resume="allow",
            dir=str(folder),
            config=configuration_of(folder),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        keep_id(folder, "wandb", self._run.id)

    @staticmethod
    def check() -> None:
        import wandb

        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False):
            raise UserError("log.trackers: nobody is logged in to wandb: run wandb login, or set WANDB_MODE=offline")

    def write(self, record: dict, grid: Path | None) -> None:
        values: dict[str, Any] = {key: math.nan if value is None else value for key, value in record.items()}
        if grid:
            values["samples"] = self._wandb.Image(str(grid))
        self._run.log(values, step=values.pop("step"))

    def close(self) -> None:
        self._run.finish()
