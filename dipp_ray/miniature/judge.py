"""The independent judge of generated digits: fitted on the test part, which nothing that is judged has seen."""

from collections.abc import Sequence
from functools import cache

import torch
from sklearn.svm import SVC
from torch import Tensor

from dipp_ray.evaluation.measure import diversity_units
from dipp_ray.miniature.digits import load_scans, parse_prompts


def pixels(images: Tensor) -> Tensor:
    """Grey pixels [B, 64] in fp64 of images [B, 3, 8, 8] in [0, 1]: the mean channel."""
    return images.detach().cpu().double().mean(dim=1).flatten(1)


@cache
def digit_judge() -> SVC:
    """Support vector machine on the test scans. It is refitted at each start, in under a second, to the same result.

    Pixels in [0, 1]; the machine's width is scikit-learn's `scale`: 1 / (64 variance).
    """
    _, test, _ = load_scans()
    return SVC(C=10.0, kernel="rbf", gamma="scale").fit(pixels(test.images).numpy(), test.digits.numpy())


def judge_digits(images: Tensor) -> Tensor:
    """The digit [B] in 0..9 that the judge reads in each image [B, 3, 8, 8] in [0, 1]."""
    return torch.tensor(digit_judge().predict(pixels(images).numpy()), dtype=torch.int64)


def accuracies(images: Tensor, prompts: list[str]) -> dict[str, float]:
    """Shares in [0, 1] of images [B, 3, 8, 8] whose digit, ink and slant are those of their prompts."""
    return {name: one.mean().item() for name, one in hits(images, prompts).items()}


def hits(images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    """1 or 0 [B], fp64, of each image [B, 3, 8, 8]: whether digit, ink and slant are those of its prompt.

    Ink and slant are measured against the terciles of the prompted digit, whatever digit the judge reads.
    """
    _, _, terciles = load_scans()
    digits, inks, slants = parse_prompts(prompts).unbind(1)
    images = images.detach().cpu()
    right = {
        "digit_accuracy": judge_digits(images) == digits,
        "ink_accuracy": terciles.inks(images, digits) == inks,
        "slant_accuracy": terciles.slants(images, digits) == slants,
    }
    return {name: one.double() for name, one in right.items()}


def frechet(images_a: Tensor, images_b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to the grey pixels of two sets of images [N, 3, 8, 8] in [0, 1].

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2), in fp64; at least two images in each set.
    """
    a, b = pixels(images_a), pixels(images_b)
    covariance_a, covariance_b = torch.cov(a.T), torch.cov(b.T)
    root_a = symmetric_root(covariance_a)
    cross = symmetric_root(root_a @ covariance_b @ root_a)
    distance = (a.mean(0) - b.mean(0)).square().sum() + (covariance_a + covariance_b - 2 * cross).trace()
    return distance.clamp_min(0).item()


def symmetric_root(matrix: Tensor) -> Tensor:
    """Square root of a symmetric positive semi-definite matrix [D, D]; eigenvalues below 0 are rounding, read as 0."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_to_test(images: Tensor) -> float:
    """Frechet distance of images [N, 3, 8, 8] in [0, 1] to the test scans."""
    _, test, _ = load_scans()
    return frechet(images, test.images)


def diversity(images: Tensor, prompts: list[str]) -> float:
    """Mean Euclidean distance of grey pixels over all pairs of images [B, 3, 8, 8] of one prompt, in [0, 8].

    Raises ValueError where no prompt has two images.
    """
    points = pixels(images)
    same = torch.tensor([[a == b for b in prompts] for a in prompts]).triu(diagonal=1)
    if not same.any():
        raise ValueError("diversity needs two images of one prompt or more")
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")[same].mean().item()


def judge(images: Tensor, prompts: list[str]) -> dict[str, float | Sequence[float]]:
    """All of the above for images [B, 3, 8, 8] in [0, 1] of `prompts`: accuracies image by image, diversity prompt by
    prompt, the Frechet distance as a number that has no interval."""
    grey = pixels(images)
    return {name: one.tolist() for name, one in hits(images, prompts).items()} | {
        "frechet": frechet_to_test(images),
        "diversity": diversity_units(grey, prompts).tolist(),
    }
