"""Diversity within a prompt: the mean distance over all pairs of images of one prompt."""

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor


def pairs_of(points: Tensor, prompts: list[str], power: float = 1.0) -> np.ndarray:
    """[P, 2], fp64, a row a prompt of two images or more, in order of appearance: the mean Euclidean distance of its
    points [N, ...] to the `power`, and the number of its pairs."""
    rows = defaultdict(list)
    for i, prompt in enumerate(prompts):
        rows[prompt].append(i)
    flat = points.flatten(1)
    distances = [torch.nn.functional.pdist(flat[same]).double() ** power for same in rows.values() if len(same) > 1]
    return np.array([(pairs.mean().item(), len(pairs)) for pairs in distances], np.float64).reshape(-1, 2)


def pair_units(pairs: np.ndarray) -> np.ndarray:
    """A value a prompt [P] of `pairs_of`, whose mean is the mean over all pairs.

    Each is that mean and what the prompt's pairs add to or take from it: the ratio estimator, linearised.
    """
    if not len(pairs):
        return np.empty(0)
    own, counts = pairs.T
    mean = (own * counts).sum() / counts.sum()
    return mean + counts / counts.mean() * (own - mean)
