"""Bradley-Terry's loss, shared among workers however unevenly; the order of pairs; augmentation; the figures."""

import math

import pytest
import torch
from scipy.stats import binomtest

from dipp_ray.preferences.calibration import (
    accuracy_cell,
    brier_score,
    calibration_error,
    measure,
    pair_accuracy,
    reliability,
    share_interval,
)
from dipp_ray.preferences.config import FitSettings
from dipp_ray.preferences.model import PairModel, augment, batches, bradley_terry_loss, rate
from dipp_ray.rewards.clip import image_statistics, load_clip, tokenize
from tiny_models import PROMPTS, save_clip


def test_loss_and_accuracy_have_their_closed_forms():
    margin, label = torch.tensor([2.0, -1.0, 0.3]), torch.tensor([1.0, 0.25, 0.5])
    sigmoid = [1 / (1 + math.exp(-m)) for m in margin.tolist()]
    pairs = list(zip(sigmoid, label.tolist(), strict=True))
    expected = sum(-(y * math.log(p) + (1 - y) * math.log(1 - p)) for p, y in pairs) / 3
    assert bradley_terry_loss(margin, label).item() == pytest.approx(expected, rel=1e-6)
    assert brier_score(margin, label) == pytest.approx(sum((p - y) ** 2 for p, y in pairs) / 3, rel=1e-6)
    assert pair_accuracy(margin, label) == 1.0
    assert pair_accuracy(-margin, label) == 0.0
    assert pair_accuracy(torch.tensor([1.0, 1.0, 1.0]), label) == 0.5
    assert pair_accuracy(margin, torch.full((3,), 0.5)) is None


@pytest.mark.parametrize(("right", "trials"), [(0, 1), (4, 4), (15, 20), (700, 1000)])
def test_the_accuracys_interval_is_wilsons(right, trials):
    low, high = share_interval(right / trials, trials)
    expected = binomtest(right, trials).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_an_accuracy_of_few_pairs_says_how_little_it_says():
    margin = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    assert accuracy_cell(measure(margin, torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5]), 10)) == "1.000 (0.51 to 1.00)"
    assert accuracy_cell(measure(margin, torch.full((5,), 0.5), 10)) == "no decided pair"


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
def test_the_workers_gradients_add_up_to_the_updates(tmp_path, workers):
    folder = save_clip(tmp_path)
    clip, tokenizer = load_clip(folder)
    model = PairModel(clip, tokenize(tokenizer, PROMPTS, clip), image_statistics(folder))
    generator = torch.Generator().manual_seed(0)
    both = torch.rand(7, 2, 3, 8, 8, generator=generator)
    prompt, label = torch.arange(7) % 4, torch.rand(7, generator=generator)

    def gradient(rows, pairs=None):
        clip.zero_grad()
        bradley_terry_loss(model(both[rows, 0], both[rows, 1], prompt[rows]), label[rows], pairs).backward()
        return torch.cat([parameter.grad.flatten() for parameter in clip.parameters()])

    whole = gradient(torch.arange(7))
    shared = sum(gradient(torch.arange(7)[rank::workers], 7) for rank in range(workers))
    assert (shared - whole).norm() < 1e-5 * whole.norm()


def test_every_pair_comes_once_an_epoch_whatever_the_batch():
    rows = torch.cat(list(batches(10, FitSettings(steps=5, batch_size=4))))
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()


def test_the_rate_warms_up_and_falls_to_zero():
    settings = FitSettings(steps=110, warmup_steps=10)
    assert [rate(step, settings) for step in (0, 4, 9, 10, 60, 110)] == pytest.approx([0.1, 0.5, 1, 1, 0.5, 0])


def test_augmentation_moves_both_images_alike():
    a = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    both = torch.stack([a, a], dim=1)
    moved = augment(both, FitSettings(shift=1), 1, range(5))
    assert torch.equal(moved[:, 0], moved[:, 1]) and not torch.equal(moved, both / 255)
    for before, after in zip(a / 255, moved[:, 0], strict=True):
        inner = after[:, 2:-2, 2:-2]
        shifts = [before[:, 2 + y : 6 + y, 2 + x : 6 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)]
        assert any(torch.equal(inner, shifted) for shifted in shifts)
    noisy = augment(both, FitSettings(noise=0.1), 1, range(5))
    assert 0.02 < (noisy - both / 255).abs().mean() < 0.1 and noisy.min() >= 0 and noisy.max() <= 1
    assert not torch.equal(noisy[:, 0], noisy[:, 1])


def test_augmentation_is_the_pairs_own_whichever_worker_makes_it():
    both = torch.randint(0, 256, (7, 2, 3, 8, 8), dtype=torch.uint8)
    settings = FitSettings(shift=2, noise=0.1, seed=3)
    whole = augment(both, settings, 5, range(7))
    for rank in range(3):
        assert torch.equal(augment(both[rank::3], settings, 5, range(rank, 7, 3)), whole[rank::3])
    assert not torch.equal(augment(both, settings, 6, range(7)), whole)
    same = augment(both[:1].expand(2, -1, -1, -1, -1), settings, 5, range(2))
    assert not torch.equal(same[0], same[1])


def test_reliability_of_a_case_by_hand():
    p = torch.tensor([0.9, 0.1, 0.6, 0.55])
    margin, label = (p / (1 - p)).log(), torch.tensor([1.0, 0.0, 0.0, 0.5])
    low, high = reliability(margin, label, 2)
    assert (low["low"], low["high"], low["pairs"], high["low"], high["high"], high["pairs"]) == (
        0.5,
        0.75,
        2,
        0.75,
        1,
        2,
    )
    assert low["confidence"] == pytest.approx(0.575) and low["preferred"] == pytest.approx(0.25)
    assert high["confidence"] == pytest.approx(0.9) and high["preferred"] == pytest.approx(1)
    assert calibration_error([low, high]) == pytest.approx((2 * 0.325 + 2 * 0.1) / 4)


def test_the_figures_do_not_depend_on_which_image_is_a():
    generator = torch.Generator().manual_seed(0)
    margin, label = 3 * torch.randn(500, generator=generator), torch.rand(500, generator=generator)
    for key, value in measure(margin, label, 10).items():
        if key != "reliability":
            assert measure(-margin, 1 - label, 10)[key] == pytest.approx(value, rel=1e-5)


def test_an_honest_model_is_calibrated_and_a_boastful_one_is_not():
    generator = torch.Generator().manual_seed(0)
    margin = 2 * torch.randn(20_000, generator=generator)
    label = torch.bernoulli(margin.sigmoid(), generator=generator)
    assert calibration_error(reliability(margin, label, 10)) < 0.02
    boast = reliability(3 * margin, label, 10)
    assert calibration_error(boast) > 0.1 and boast[-1]["confidence"] > boast[-1]["preferred"] + 0.05


def test_certainty_and_indifference_have_a_bin():
    rows = reliability(torch.tensor([0.0, 80.0, -80.0]), torch.tensor([0.5, 1.0, 0.0]), 5)
    assert [(row["low"], row["pairs"]) for row in rows] == [(0.5, 1), (0.9, 2)]
