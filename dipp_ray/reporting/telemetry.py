"""What runs over in numbers, for Prometheus by way of Ray's metrics: each is found there as ray_NAME."""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

# name -> (kind, meaning, tags beside the run's name). cluster/grafana.json shows each of them.
METRICS: dict[str, tuple[type, str, tuple[str, ...]]] = {
    "dipp_ray_steps": (Counter, "Steps finished, those that were done again after a fault included.", ()),
    "dipp_ray_step": (Gauge, "Number of finished steps of the run.", ()),
    "dipp_ray_images_per_second": (Gauge, "Samples of generator updates a second.", ()),
    "dipp_ray_busy_share": (Gauge, "Part of the time that a role's actors were at work; 1: all.", ("role",)),
    "dipp_ray_recoveries": (Counter, "Faults that the run has recovered from.", ()),
    "dipp_ray_preemptions": (Counter, "Nodes of the run's that were lost, or left it with notice.", ()),
    "dipp_ray_steps_lost": (Counter, "Steps that had to be done again.", ()),
    "dipp_ray_recovery_seconds": (Gauge, "From the last fault to the next finished step.", ()),
    "dipp_ray_checkpoint_seconds": (Gauge, "What the last checkpoint held the training up.", ()),
    "dipp_ray_keep_seconds": (Gauge, "What keeping the state in memory held the slowest rank up, last time.", ()),
    "dipp_ray_state_age_steps": (Gauge, "Steps since the last state that lies outside the ranks.", ()),
}  # fmt: skip


class Telemetry:
    """The metrics of one run. Needs a connected Ray."""

    def __init__(self, run: str):
        self.metrics = {
            name: kind(name, description=meaning, tag_keys=("run", *tags))
            for name, (kind, meaning, tags) in METRICS.items()
        }
        self.run = run

    def set(self, name: str, value: float, **tags: str) -> None:
        self.metrics[name].set(value, {"run": self.run, **tags})

    def add(self, name: str, value: float = 1.0) -> None:
        if value > 0:  # Ray refuses 0
            self.metrics[name].inc(value, {"run": self.run})

    def busy(self, seconds: Mapping[str, float], actors: Mapping[str, int], wall: float) -> None:
        """seconds: that each role's actors were at work, together, within `wall` seconds."""
        for role, worked in seconds.items():
            if wall > 0 and actors.get(role):
                self.set("dipp_ray_busy_share", worked / (wall * actors[role]), role=role)
