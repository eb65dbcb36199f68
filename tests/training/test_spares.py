"""Which spare process takes a lost rank's place: a ready one before one that is starting, never one that is gone."""

import pytest
from ray.exceptions import RayActorError

from dipp_ray.training import spares as module
from dipp_ray.training.spares import Spares
from settings import tiny_config


class Spare:
    """state: ready, starting, or gone."""

    def __init__(self, state):
        self.state, self.alive = state, self

    def remote(self):
        return self

    def options(self, **_):
        return type("Options", (), {"remote": lambda _, config: Spare("starting")})()


@pytest.fixture
def spares(tmp_path, monkeypatch):
    class Ray:
        @staticmethod
        def wait(asked, timeout):
            ended = [spare for spare in asked if spare.state != "starting"][:1]
            return ended, [spare for spare in asked if spare not in ended]

        @staticmethod
        def get(spare):
            if spare.state == "gone":
                raise RayActorError

    monkeypatch.setattr(module, "ray", Ray)
    monkeypatch.setattr(module, "NodeAffinitySchedulingStrategy", lambda node, soft: node)
    return Spares(tiny_config(tmp_path, tmp_path, tmp_path, "roles.spares=true"))


def test_a_ready_one_is_taken_before_one_that_starts(spares):
    gone, starting, ready = (Spare(state) for state in ("gone", "starting", "ready"))
    spares.kept["score", "a"] = [gone, starting, ready]
    assert spares.take("score", "a") is ready
    assert spares.kept["score", "a"] == [starting], "one that is gone is forgotten"


def test_one_that_starts_is_ahead_of_a_new_one(spares):
    starting = Spare("starting")
    spares.kept["score", "a"] = [Spare("gone"), starting]
    assert spares.take("score", "a") is starting
    assert spares.take("score", "a") is None and spares.take("generator", "a") is None


def test_what_was_taken_or_is_gone_is_made_up_for(spares):
    spares.refill("score", Spare("kind"), ["a", "a", "b"])
    assert [len(spares.kept["score", node]) for node in ("a", "b")] == [2, 1]
    spares.kept["score", "a"][0].state = "gone"
    assert spares.take("score", "a") is not None
    spares.refill("score", Spare("kind"), ["a", "a", "b"])
    assert [spare.state for spare in spares.kept["score", "a"]] == ["starting"] * 2
