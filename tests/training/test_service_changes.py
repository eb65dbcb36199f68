"""What a run says of a shared service that is not what it was."""

from dipp_ray.training.shared_service import changes

CLIP = {
    "name": "clip", "model": "clip", "differentiable": True, "weight": 1.0, "held_out": False, "mean": 0.0,
    "deviation": 1.0, "hinge": None, "cap": None, "required": True,
}  # fmt: skip
SERVICE = {
    "name": "rewards", "version": "1", "deterministic": False, "batch_rows": 32, "latent_channels": 4,
    "models": [CLIP], "limits": {"rows": 8},
}  # fmt: skip


def test_each_difference_that_rewards_depend_on_is_told():
    assert changes(SERVICE, SERVICE | {"limits": {"rows": 9}}) == []
    now = SERVICE | {"models": [CLIP | {"weight": 2.0, "cap": 3.0}], "deterministic": True}
    assert changes(SERVICE, now) == [
        "deterministic was False and is True", "weight of clip was 1.0 and is 2.0", "cap of clip was None and is 3.0"
    ]  # fmt: skip


def test_models_that_come_and_go_are_told():
    other = SERVICE | {"models": [CLIP | {"name": "hps"}]}
    assert changes(SERVICE, other) == ["clip is gone", "hps is new"]
