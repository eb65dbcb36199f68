import pytest
import torch

from dipp_ray.miniature.digits import load_scans
from dipp_ray.miniature.judge import accuracies, diversity, frechet, frechet_to_test, pixels, symmetric_root


def grey(points: torch.Tensor) -> torch.Tensor:
    return points.reshape(-1, 1, 8, 8).expand(-1, 3, 8, 8)


def test_frechet_of_commuting_gaussians_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(400, 64, generator=generator, dtype=torch.float64)
    # The same points scaled by axis and moved: |m|^2 + sum (s - 1)^2 var, whatever the sample, in its own eigenbasis.
    centred = points - points.mean(0)
    white = centred @ torch.linalg.inv(symmetric_root(torch.cov(points.T)))
    scale = torch.linspace(0.5, 2.0, 64, dtype=torch.float64)
    move = torch.linspace(-0.2, 0.1, 64, dtype=torch.float64)
    expected = move.square().sum() + (scale - 1).square().sum()
    assert frechet(grey(white), grey(white * scale + move)) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_of_covariances_that_do_not_commute():
    generator = torch.Generator().manual_seed(1)
    a, b = (
        torch.randn(300, 64, generator=generator, dtype=torch.float64)
        @ torch.randn(64, 64, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    covariance_a, covariance_b = torch.cov(a.T), torch.cov(b.T)
    # tr (S_a S_b)^1/2 by the eigenvalues of the product, which are real and positive.
    cross = torch.linalg.eigvals(covariance_a @ covariance_b).real.clamp_min(0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross
    assert frechet(grey(a), grey(b)) == pytest.approx(expected.item(), rel=1e-6)


def test_frechet_tells_scans_from_noisy_scans():
    train, test, _ = load_scans()
    noisy = train.images + 0.1 * torch.randn(train.images[:, :1].shape, generator=torch.Generator().manual_seed(2))
    assert frechet_to_test(test.images) == pytest.approx(0, abs=1e-9)
    assert 0.01 < frechet_to_test(train.images) < 0.15 < frechet_to_test(noisy)


def test_the_judge_reads_scans_it_has_not_seen():
    train, _, _ = load_scans()
    right = accuracies(train.images, list(train.prompts))
    assert right["digit_accuracy"] > 0.98
    assert right["ink_accuracy"] == right["slant_accuracy"] == 1
    wrong = accuracies(train.images.flip(0), list(train.prompts))
    assert wrong["digit_accuracy"] < 0.2
    assert wrong["ink_accuracy"] < 0.5 and wrong["slant_accuracy"] < 0.5


def test_diversity_counts_pairs_of_one_prompt_only():
    a, b = "a thin upright handwritten one", "a bold upright handwritten two"
    points = torch.zeros(5, 64)
    points[1, 0], points[2, 1], points[3:] = 1, 1, 0.5
    expected = (1 + 1 + 2**0.5 + 0) / 4  # three pairs of a, one of b
    assert diversity(grey(points), [a, a, a, b, b]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="two images"):
        diversity(grey(points[:2]), [a, b])


def test_pixels_are_the_mean_channel():
    image = torch.stack([torch.full((8, 8), value) for value in (0.0, 0.3, 0.9)])[None]
    assert torch.allclose(pixels(image), torch.full((1, 64), 0.4, dtype=torch.float64))
