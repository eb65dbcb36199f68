import pytest
import torch

from dipp_ray.errors import UserError
from dipp_ray.miniature.digits import load_scans
from dipp_ray.miniature.gold import DigitClassifier, GoldRecipe, GoldReward, classifier_accuracy, train_classifier

TINY = GoldRecipe(steps=60, batch=64, width=8, lr=5e-3)


@pytest.fixture(scope="module")
def gold() -> GoldReward:
    train, _, _ = load_scans()
    return GoldReward(train_classifier(train, TINY, lambda line: None))


def test_a_short_fit_reads_unseen_scans(gold):
    _, test, _ = load_scans()
    assert classifier_accuracy(gold.classifier, test) > 0.8


def test_reward_is_the_stated_formula(gold):
    _, test, _ = load_scans()
    images, prompts = test.images[:50], list(test.prompts[:50])
    probability = gold.classifier(images[:, :1]).softmax(1)[torch.arange(50), test.digits[:50]]
    expected = probability.log().clamp_min(-5) - 16 * (images - images**2).flatten(1).mean(1)
    assert torch.allclose(gold.reward(images, prompts), expected, atol=1e-4)


def test_the_log_probability_is_clamped_below():
    classifier = DigitClassifier(8).requires_grad_(False)
    classifier.layers[-1].weight.zero_()
    classifier.layers[-1].bias.copy_(torch.tensor([50.0] + [0.0] * 9))
    black = torch.zeros(2, 3, 8, 8)
    prompts = ["a thin upright handwritten zero", "a thin upright handwritten one"]
    assert GoldReward(classifier).reward(black, prompts).tolist() == pytest.approx([0, -5])


def test_gradient_against_finite_differences(gold):
    train, _, _ = load_scans()
    exact = GoldReward(DigitClassifier(TINY.width)).double()
    exact.load_state_dict(gold.state_dict())
    images = (0.8 * train.images[:4] + 0.1).double().requires_grad_()
    prompts = list(train.prompts[:4])
    (gradient,) = torch.autograd.grad(exact.reward(images, prompts).sum(), images)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (exact.reward(images + sign * step * direction, prompts) for sign in (1, -1))
    expected = (gradient * direction).flatten(1).sum(1)
    assert torch.allclose((ahead - behind) / (2 * step), expected, rtol=1e-6, atol=1e-8)
    assert expected.abs().min() > 1e-3


def test_saved_and_loaded_it_is_the_same(gold, tmp_path):
    _, test, _ = load_scans()
    gold.save(tmp_path, TINY)
    loaded = GoldReward.load(tmp_path)
    prompts = list(test.prompts)
    assert torch.equal(loaded.reward(test.images, prompts), gold.reward(test.images, prompts))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors is missing"):
        GoldReward.load(tmp_path)
