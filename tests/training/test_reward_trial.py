"""`check --try`: what is wrong with a reward is said before a run, with the author's own file and line."""

from pathlib import Path

import pytest
import torch
import trial_rewards

from dipp_ray.errors import UserError
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.serving.contract.failures import NoGradientError
from dipp_ray.training.reward_trial import tried, try_rewards
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial")
    return folder, pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")


def answer(world, name, gradient=True):
    decoder = LatentDecoder.from_folder(world[1])
    latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    term = RewardTerm(name="mine", model=f"trial_rewards:{name}")
    return tried(term, decoder, latents, ["a cat", "a red dog"], gradient, torch.device("cpu"))


def test_what_a_reward_answers_is_said(world):
    found = answer(world, "Fine")
    assert found.fault is None and len(found.scores) == len(found.gradient_norms) == 2
    assert found.scores[0] > 0 and all(norm > 0 for norm in found.gradient_norms)
    assert "gradient of norm" in str(found) and "no gradient asked for" in str(answer(world, "Fine", gradient=False))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("NotMade", r"KeyError: 'no weights' \(.*trial_rewards\.py, line 13\)"),
        ("Raises", r"RuntimeError: .* \(.*trial_rewards\.py, line 18\)"),
        ("OfAnotherShape", r"returned shape \[2, 1\], not \[2\]"),
        ("InNumpy", r"returned a numpy\.ndarray, not a tensor \[2\]"),
        ("Flat", "its gradient is 0 for both images"),
        ("Infinite", "its scores are not finite"),
        ("SteepSquareRoot", "its gradient is not finite"),
        ("OfTheBatch", "a row depends on its companions"),
        ("Missing", "module trial_rewards has no class Missing"),
    ],
)
def test_a_fault_is_one_sentence(world, name, sentence):
    import re

    found = answer(world, name)
    assert found.fault is not None and re.search(sentence, found.fault), found.fault
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Detached", "return super().reward(images.detach()"),
        ("Unfrozen", "means ="),
        ("Bytes", "return super().reward((i"),
        ("Unrecorded", "def reward"),
    ],
)
def test_a_score_that_does_not_depend_on_the_images_is_said_with_its_place(world, name, line):
    """Whether it wants no gradient at all, or one by weights that nobody froze."""
    lines = Path(trial_rewards.__file__).read_text().splitlines()
    begin = next(i for i in range(lines.index(f"class {name}(Fine):"), len(lines)) if line in lines[i])
    found = answer(world, name)
    assert found.fault == f"{NoGradientError.reason} ({trial_rewards.__file__}, line {begin})"
    assert "numpy, PIL, .detach(), torch.no_grad or an integer cast" in found.fault
    assert answer(world, name, gradient=False).fault is None, "where none is asked for, it scores"


def test_each_is_tried_in_an_actor_before_any_is_refused(ray_session, world):
    said: list[str] = []
    terms = ", ".join(f"{{name: {name.lower()}, model: 'trial_rewards:{name}'}}" for name in ("Raises", "Fine"))
    with pytest.raises(UserError, match="of 2 rewards raises cannot be used"):
        try_rewards(tiny_config(*world, f"reward.terms=[{terms}]"), ["a cat"], said.append)
    raises, fine = [line for line in said if line.startswith("reward '")]
    assert "line 18" in raises and "for 2 images" in fine
