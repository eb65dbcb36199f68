import pytest
import torch
from safetensors.torch import load_file, save_file

from dipp_ray.errors import UserError
from dipp_ray.rewards.clip import ClipReward, tokenize
from dipp_ray.rewards.loading import load_reward
from dipp_ray.rewards.terms import RewardTerm
from tiny_models import PROMPTS, save_clip


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def images():
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def term(model, name="r", **settings):
    return RewardTerm(name=name, model=model, **settings)


def test_clip_is_the_models_own_logit(clip_folder, images):
    reward = ClipReward(clip_folder)
    mean, std = torch.tensor(reward.mean).view(3, 1, 1), torch.tensor(reward.std).view(3, 1, 1)
    tokens = tokenize(reward.tokenizer, PROMPTS, reward.model)
    with torch.no_grad():
        logits = reward.model(pixel_values=(images - mean) / std, **tokens).logits_per_image
        torch.testing.assert_close(reward.reward(images, PROMPTS), logits.diagonal(), rtol=1e-5, atol=1e-6)
    assert logits.diagonal().std() > 1e-3  # or the comparison would say nothing


def test_clip_takes_any_size_and_gives_a_gradient(clip_folder):
    images = torch.rand(2, 3, 20, 13, requires_grad=True)
    ClipReward(clip_folder).reward(images, PROMPTS[:2]).sum().backward()
    assert images.grad.abs().sum() > 0


def test_text_features_are_computed_once_and_not_kept_across_a_cast(clip_folder, images, monkeypatch):
    reward = ClipReward(clip_folder)
    calls = []
    original = reward.model.get_text_features
    monkeypatch.setattr(reward.model, "get_text_features", lambda **kw: calls.append(1) or original(**kw))
    for _ in range(2):
        reward.reward(images, ["red circle", "red circle", "blue square", "red circle"])
    assert len(calls) == 2
    assert reward.double().reward(images.double(), PROMPTS).dtype == torch.float64
    assert len(calls) == 6


def test_a_missing_weight_is_refused(clip_folder, tmp_path):
    folder = save_clip(tmp_path / "broken")
    path = f"{folder}/model.safetensors"
    weights = load_file(path)
    del weights["visual_projection.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"visual_projection\.weight"):
        ClipReward(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "clip"}, "needs the folder"),
        ({"model": "clip", "folder": "/nowhere"}, "no folder /nowhere"),
        ({"model": "clap"}, "neither package.module:Class nor one of"),
        ({"model": "no_such_module:Thing"}, "no_such_module"),
        ({"model": "tiny_models:Missing"}, "no class Missing"),
        ({"model": "tiny_models:Nothing"}, "no method reward"),
    ],
)
def test_a_bad_term_is_one_sentence(settings, message):
    with pytest.raises(UserError, match=message):
        load_reward(RewardTerm(name="r", **settings))


def test_an_empty_folder_is_no_clip(tmp_path):
    with pytest.raises(UserError, match="no CLIP model"):
        load_reward(term("clip", folder=str(tmp_path)))


def test_a_class_is_loaded_by_load_or_by_its_constructor(tmp_path):
    assert load_reward(term("tiny_models:FromFolder", folder=str(tmp_path))).folder == str(tmp_path)
    assert not load_reward(term("tiny_models:Brightness")).training
