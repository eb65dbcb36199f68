"""Classifier-free guidance."""

from torch import Tensor


def guided(null: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """null + scale (conditional - null), of scores or of predictions of x_0 or eps, which are affine in each other."""
    return null + scale * (conditional - null)
