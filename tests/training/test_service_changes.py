"""What a run says of a shared service that is not what it was."""

from types import SimpleNamespace

import pytest

from dipp_ray.errors import RewardUnavailableError, UserError
from dipp_ray.training.looks import History, Look
from dipp_ray.training.run import Run
from dipp_ray.training.shared_service import changes
from settings import tiny_config

CLIP = {
    "name": "clip", "model": "clip", "differentiable": True, "weight": 1.0, "held_out": False, "mean": 0.0,
    "deviation": 1.0, "hinge": None, "cap": None, "required": True,
}  # fmt: skip
SERVICE = {
    "name": "rewards", "version": "1", "deterministic": False, "batch_rows": 32, "latent_channels": 4,
    "models": [CLIP], "limits": {"rows": 8},
}  # fmt: skip


def test_each_difference_that_rewards_depend_on_is_told():
    assert changes(SERVICE, SERVICE | {"limits": {"rows": 9}}, None) == []
    now = SERVICE | {"models": [CLIP | {"weight": 2.0, "cap": 3.0}], "deterministic": True}
    assert changes(SERVICE, now, None) == [
        "deterministic was False and is True", "weight of clip was 1.0 and is 2.0", "cap of clip was None and is 3.0"
    ]  # fmt: skip


def test_models_that_come_and_go_are_told():
    other = SERVICE | {"models": [CLIP | {"name": "hps"}]}
    assert changes(SERVICE, other, None) == ["clip is gone", "hps is new"]


def run_of(tmp_path, answer, said):
    def together(role, method):
        assert (role, method) == ("reward", "describe")
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    config = tiny_config(tmp_path, tmp_path, tmp_path, "reward={app: rewards}")
    session = SimpleNamespace(controller=SimpleNamespace(together=together))
    run = Run(config, SimpleNamespace(current=session), None, said.append, {})
    run.state = run.state.but(service=SERVICE)
    return run


def test_a_service_that_changes_while_the_run_trains_is_said_and_recorded(tmp_path):
    said = []
    run = run_of(tmp_path, SERVICE | {"batch_rows": 8}, said)
    run.look_at_service()
    assert said == ["the reward service changed: batch_rows was 32 and is 8; the run goes on with it as it is now"]
    assert run.state.service["batch_rows"] == 8


@pytest.mark.parametrize("error", [RewardUnavailableError("no answer"), UserError("do not serve the same")])
def test_a_service_that_is_away_just_then_costs_no_checkpoint(tmp_path, error):
    said = []
    run = run_of(tmp_path, error, said)
    run.look_at_service()
    assert str(error) in said[0] and run.state.service == SERVICE


def test_another_judge_begins_anew(tmp_path):
    watched = [CLIP | {"name": name, "held_out": True} for name in ("pickscore", "hps")]
    before, now = SERVICE | {"models": [CLIP, *watched]}, SERVICE | {"models": [CLIP, *reversed(watched)]}
    said = []
    run = run_of(tmp_path, now, said)
    run.state = run.state.but(service=before, held_out={"pickscore": History(None, Look(3, 21.0))}, falls=2)
    assert run.state.best == Look(3, 21.0)
    run.look_at_service()
    assert (run.state.best, run.state.falls) == (None, 0)
    assert "the held-out model that judges was pickscore and is hps" in said[0]
