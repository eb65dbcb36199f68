"""MLflow, set by its own variables: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, and those of its credentials."""

import math
import os
from pathlib import Path
from typing import Any

from dipp_ray.errors import UserError
from dipp_ray.reporting.trackers.same_run import configuration_of, id_of, keep_id

EXPERIMENT = "dipp-ray"  # where MLFLOW_EXPERIMENT_NAME names none
PARAMETERS = 100  # of one call, as its servers have it
LONGEST = 500  # letters of a parameter's value, as the oldest of its servers have it


class Mlflow:
    """One MLflow run for a run, also after it was resumed: steps that it was told before are passed over."""

    PACKAGE, REMOTE = "mlflow", True

    def __init__(self, folder: Path, first_step: int | None):
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        known = id_of(folder, "mlflow", first_step)
        self.fresh = known is None
        if known is None:
            self._id = self._client.create_run(self._experiment(), run_name=folder.name).info.run_id
            self._told = -1
            self._parameters(configuration_of(folder))
            keep_id(folder, "mlflow", self._id)
        else:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            self._told = int(self._client.get_run(known).data.metrics.get("step", -1))

    @staticmethod
    def check() -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise UserError("log.trackers: mlflow is told no server: set MLFLOW_TRACKING_URI, such as http://host:5000")

    def write(self, record: dict, grid: Path | None) -> None:
        from mlflow.entities import Metric

        step, when = record["step"], round(record["time"] * 1000)
        if step <= self._told:
            return
        values = {key: math.nan if value is None else float(value) for key, value in record.items() if key != "time"}
        if grid:
            self._client.log_artifact(self._id, str(grid), "samples")
        self._client.log_batch(self._id, metrics=[Metric(key, value, when, step) for key, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def _parameters(self, configuration: dict) -> None:
        from mlflow.entities import Param

        flat = [Param(key, str(value)[:LONGEST]) for key, value in _flat(configuration)]
        for start in range(0, len(flat), PARAMETERS):
            self._client.log_batch(self._id, params=flat[start : start + PARAMETERS])


def _flat(settings: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """('section.key', value) of every setting."""
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
