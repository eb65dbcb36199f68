"""The Frechet distance of two sets of features, each taken for a Gaussian (Heusel et al. 2017, arXiv:1706.08500)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of `count` features, fp64."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def gaussian_of(features: np.ndarray) -> Gaussian:
    """Of features [N, D]: the covariance is the unbiased one. Raises ValueError for fewer than two."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} features have no covariance")
    features = np.asarray(features, np.float64)
    return Gaussian(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)), len(features))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): the squared 2-Wasserstein distance, at least 0.

    The trace of the root is that of (C_a^(1/2) C_b C_a^(1/2))^(1/2), which is symmetric: no complex number comes of
    rounding, and covariances of fewer images than features have their root too.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    inner = root @ b.covariance @ root
    cross = np.sqrt(np.linalg.eigvalsh((inner + inner.T) / 2).clip(0)).sum()
    apart = np.square(a.mean - b.mean).sum()
    return max(0.0, float(apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross))
