"""Several reward models as one: r = sum_k weight_k f_k((r_k - mean_k) / deviation_k), and its exact gradient.

The models of a sum may answer from different processes, so the sum is made from their answers. Rows do not depend on
each other: the chain rule through f_k is one factor a row, and needs no graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dipp_ray.rewards.terms import SumTerm


@dataclass(frozen=True)
class Answer:
    """One model about B samples: its raw score [B], and d score_i / d x_i [B, C, h, w], None where nobody asked."""

    score: np.ndarray
    gradient: np.ndarray | None


@dataclass(frozen=True)
class Combined:
    """reward [B]: the sum. gradient [B, C, h, w] of it, or None. scores {name: [B]}: raw, held-out ones too."""

    reward: np.ndarray
    scores: dict[str, np.ndarray]
    gradient: np.ndarray | None


def trained(terms: Sequence[SumTerm]) -> list[SumTerm]:
    """The terms that enter the sum."""
    return [term for term in terms if not term.held_out]


def bend(term: SumTerm, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the raw score [B] adds to the sum, and the derivative of that by the raw score; both [B] in fp64.

    hinge h: -max(0, h - s) (ReFL, Xu et al. 2023); cap c: min(s, c), with s the standardised score. Either is flat
    from its bound on, the bound included.
    """
    value = (score.astype(np.float64) - term.mean) / term.deviation
    slope = np.full_like(value, term.weight / term.deviation)
    bound = term.hinge if term.hinge is not None else term.cap
    if bound is not None:
        slope = np.where(value < bound, slope, 0.0)
        value = np.minimum(value, bound) - (bound if term.hinge is not None else 0.0)
    finite = np.isfinite(score)  # a bound must not make a number of an infinite score
    return np.where(finite, term.weight * value, np.nan), np.where(finite, slope, np.nan)


def pixel_slope(terms: Sequence[SumTerm], answers: dict[str, Answer]) -> tuple[np.ndarray, np.ndarray]:
    """(slope [B, ...], factor [B]) of the models' gradients: the sum's gradient is factor_i slope_i in row i.

    Where one model alone is trained the slope is its own, as it came, and the factor its weight: what both go through
    afterwards, a decoder, then gives to the bit what that model's own decoder would. Else the factor is one.
    """
    own = [term for term in trained(terms) if term.name in answers]
    if len(own) > 1:
        slope = combine(own, answers, gradient=True).gradient
        assert slope is not None, "it was asked for"
        return slope, np.ones(len(slope), slope.dtype)
    answer = answers[own[0].name]
    if answer.gradient is None:
        raise ValueError(f"the model of '{own[0].name}' gave no gradient")
    return answer.gradient, bend(own[0], answer.score)[1]


def combine(terms: Sequence[SumTerm], answers: dict[str, Answer], gradient: bool) -> Combined:
    """The sum of what the models of `terms` returned; a term without an answer is left out of it.

    The reward has the scores' dtype, the gradient that of the models' gradients. Without trained terms the sum is
    empty: zero. A score that is not finite makes sum and gradient NaN.
    """
    scores = {term.name: answers[term.name].score for term in terms if term.name in answers}
    dtype = np.result_type(np.float32, *scores.values())
    reward = np.zeros(len(next(iter(scores.values()))), np.float64)
    slope = None
    for term in trained(terms):
        if term.name not in answers:
            continue
        value, derivative = bend(term, answers[term.name].score)
        reward += value
        if gradient:
            own = answers[term.name].gradient
            if own is None:
                raise ValueError(f"the model of '{term.name}' gave no gradient")
            share = own * derivative.astype(own.dtype).reshape(-1, *[1] * (own.ndim - 1))
            slope = share if slope is None else slope + share
    return Combined(reward.astype(dtype), scores, slope)
