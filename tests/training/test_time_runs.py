"""Distributions of time in a run: what is refused before it, and that every role draws the same."""

import re
from pathlib import Path

import pytest
import torch

import dipp_ray
from dipp_ray.diffusion.noise import Draws
from dipp_ray.errors import UserError
from dipp_ray.training.checks import check
from dipp_ray.training.plain import plain_loop
from dipp_ray.training.trajectory import difference, trajectory
from settings import tiny_config
from tiny import prompt_file
from tiny_families import save_family

SD3 = "{distribution: logit_normal, shift: 3, continuous: true}"
FLOWS = ("sd3", "sana", "flux", "qwenimage", "zimage")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made, place = {}, tmp_path_factory.mktemp("times")

    def folder(name):
        if name not in made:
            made[name] = save_family(name, place / name)
        return made[name]

    return folder


@pytest.fixture
def config(folders, tmp_path):
    def of(family, *overrides):
        size = "[32, 32]" if family == "sana" else "[16, 16]"
        return tiny_config(
            tmp_path / "runs", folders(family), prompt_file(tmp_path / "p.parquet"), "data.batch_size=4",
            "data.micro_batches=2", "objective.reward_scale=0", f"model.resolution={size}",
            f"model.t_star={1000 if family in FLOWS else 440}", *overrides,
        )  # fmt: skip

    return of


@pytest.mark.parametrize(
    ("family", "override", "sentence"),
    [
        ("sd15", "objective.score_times={continuous: true}", "a table of 1000 whole steps"),
        (
            "sd3",
            "objective.divergence_timesteps=[20, 1001]",
            r"the teacher has 1000 steps \(of a flow, sigma = t/1000\)",
        ),
        ("sd3", "objective.divergence_times={distribution: logit_normal, mean: 20}", "almost wholly outside"),
    ],
)
def test_what_cannot_be_drawn_is_refused(config, family, override, sentence):
    with pytest.raises(UserError, match=sentence):
        check(config(family, override))


def test_every_role_is_asked_at_the_same_times(config, monkeypatch):
    """The plain loop's networks are asked at the times of alpha and sigma that the gradient is assembled with."""
    run = config("sd3", f"objective.score_times={SD3}", "objective.divergence_times={distribution: logit_normal}")
    loop = plain_loop(run, check(run))
    asked = {}
    for role, network in (("score", loop.score.network), ("teacher", loop.teacher)):
        network.register_forward_pre_hook(lambda _, given, role=role: asked.setdefault(role, []).append(given[1]))
    loop.step(0)
    trained, answered = asked["score"][:2], asked["score"][2:]
    assert all(t.dtype == torch.float32 and (t != t.round()).any() for t in trained)
    for i, (ours, theirs) in enumerate(zip(answered, asked["teacher"], strict=True)):
        t, _ = loop.divergence_draws(Draws(7, 0, 0, range(2 * i, 2 * i + 2)))
        assert torch.equal(ours, t) and torch.equal(theirs, t.repeat(2))  # both branches of guidance


@pytest.mark.parametrize("family", FLOWS)
def test_times_between_steps_reach_every_flow(config, family):
    """A time that is whole gives what the whole number gives, and the next hundredth of a step nearly so."""
    run = config(family, f"objective.score_times={SD3}", f"objective.divergence_times={SD3}")
    loop = plain_loop(run, check(run))
    _, _, embeds, x0 = loop.sample(Draws(7, 0, 0, range(2)), graph=False)
    outputs = []
    with torch.no_grad():
        for t in (torch.tensor([300, 700]), torch.tensor([300.0, 700.0]), torch.tensor([300.01, 700.01])):
            outputs.append(loop.teacher(x0, t, embeds))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)
    assert 0 < (outputs[2] - outputs[1]).abs().max() < 0.05 * outputs[1].abs().max()
    assert all(torch.tensor(value).isfinite() for value in loop.step(0).values())


def test_one_place_draws_times():
    package = Path(dipp_ray.__file__).parent
    named = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r'"(score|divergence)_t"', path.read_text())
    }
    assert named == {"diffusion/noise.py", "alignment/times.py"}


def test_a_checkpoint_from_before_the_distributions_resumes(config):
    run = config("sd15")
    before = trajectory(run)
    del before["objective"]["score_times"], before["objective"]["divergence_times"]
    assert difference({"trajectory": before}, run) is None
    said = difference({"trajectory": before}, config("sd15", "objective.divergence_times={shift: 3}"))
    assert said == "objective.divergence_times.shift was 1.0 and is 3.0"
