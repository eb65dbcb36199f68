"""The watch over over-optimisation, with its judgement alone: no Ray."""

from types import SimpleNamespace

from dipp_ray.training.watch import Watch
from settings import tiny_config

MODELS = [{"name": name, "held_out": name != "preference"} for name in ("preference", "gold", "alpha")]


def watch(tmp_path, patience):
    config = tiny_config(tmp_path, tmp_path, tmp_path, f"log.stop_patience={patience}")
    controller = SimpleNamespace(
        roles=SimpleNamespace(reward=None, service={"models": MODELS}),
        prompts=SimpleNamespace(first=lambda n: ["a"] * n),
    )
    return Watch(config, controller)


def test_the_best_is_remembered_and_falls_are_counted(tmp_path):
    seen = watch(tmp_path, patience=2)
    assert not seen.judge(0, {"held_out/gold": 9.0})  # the start has no checkpoint that could be kept
    assert not seen.judge(10, {"held_out/alpha": 25.0})  # another model than the first is no judge
    assert seen.judge(10, {"held_out/alpha": 25.0, "held_out/gold": 1.0, "watched/preference": 5.0})
    assert not seen.judge(20, {"held_out/gold": 0.5, "watched/preference": 6.0})
    assert not seen.gives_up
    assert seen.judge(30, {"held_out/gold": 2.0}) and seen.best == (30, 2.0)
    assert not seen.judge(40, {"held_out/gold": 1.9}) and not seen.gives_up
    assert not seen.judge(50, {"held_out/gold": 1.8}) and seen.gives_up


def test_without_patience_or_held_out_reward_it_never_gives_up(tmp_path):
    seen = watch(tmp_path, patience=0)
    seen.judge(10, {"held_out/gold": 1.0})
    for step in range(20, 100, 10):
        seen.judge(step, {"held_out/gold": 0.0})
    assert not seen.gives_up
    blind = watch(tmp_path, patience=1)
    assert not blind.judge(10, {"watched/preference": 1.0}) and blind.best is None and not blind.gives_up
