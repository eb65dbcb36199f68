"""What Prometheus is told: every metric is on the dashboard, and what is set is of the run and its roles."""

import json
from pathlib import Path

import pytest

from dipp_ray.reporting import telemetry

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"


class Recorded:
    def __init__(self, name, description, tag_keys):
        self.tag_keys, self.values = tag_keys, []

    def set(self, value, tags):
        assert set(tags) <= set(self.tag_keys)
        self.values.append((value, tags))

    inc = set


@pytest.fixture
def told(monkeypatch):
    metrics = {name: (Recorded, meaning, tags) for name, (_, meaning, tags) in telemetry.METRICS.items()}
    monkeypatch.setattr(telemetry, "METRICS", metrics)
    return telemetry.Telemetry("mine")


def test_the_dashboard_shows_every_metric_under_the_name_that_ray_gives_it():
    shown = " ".join(
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]
    )
    for name, (kind, _, _) in telemetry.METRICS.items():
        assert f"ray_{name}_total" in shown if kind is telemetry.Counter else f"(ray_{name})" in shown


def test_the_busy_share_is_of_all_actors_of_a_role(told):
    told.busy({"generator": 3.0, "teacher": 1.0, "reward": 0.5}, {"generator": 2, "teacher": 0}, wall=2.0)
    assert told.metrics["dipp_ray_busy_share"].values == [(0.75, {"run": "mine", "role": "generator"})]


def test_nothing_lost_is_not_counted(told):
    told.add("dipp_ray_steps_lost", 0)
    told.add("dipp_ray_steps_lost", 2)
    assert told.metrics["dipp_ray_steps_lost"].values == [(2, {"run": "mine"})]
