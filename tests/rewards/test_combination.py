"""The sum against autograd through the same formula, written down once more."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dipp_ray.rewards.combination import Answer, combine
from dipp_ray.rewards.terms import RewardTerm

SHAPES = {"plain": {}, "standardised": {"mean": 0.3, "deviation": 2.0}, "hinge": {"hinge": 0.4}, "cap": {"cap": -0.2},
          "all": {"mean": -0.5, "deviation": 0.7, "hinge": 0.1}}  # fmt: skip


def term(name="a", **settings):
    return RewardTerm(name=name, model="clip", **settings)


def by_autograd(settings, weight, x, scores_of):
    x = torch.from_numpy(x).requires_grad_()
    s = (scores_of(x) - settings.get("mean", 0)) / settings.get("deviation", 1)
    if "hinge" in settings:
        s = -torch.relu(settings["hinge"] - s)
    if "cap" in settings:
        s = torch.minimum(s, torch.tensor(settings["cap"], dtype=s.dtype))
    value = weight * s
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach().numpy(), gradient.numpy()


def score_and_slope(x, scores_of):
    x = torch.from_numpy(x).requires_grad_()
    score = scores_of(x)
    (slope,) = torch.autograd.grad(score.sum(), x)
    return Answer(score.detach().numpy(), slope.numpy())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_sum_and_its_gradient_are_autograds(shape):
    x = np.random.default_rng(0).standard_normal((16, 3, 4, 4))
    scores = {"a": lambda x: x.sum((1, 2, 3)) / 8, "b": lambda x: (x**2).mean((1, 2, 3)) - 1}
    terms = [term("a", weight=0.7, **SHAPES[shape]), term("b", weight=-2.0), term("watch", held_out=True)]
    answers = {name: score_and_slope(x, of) for name, of in scores.items()}
    answers["watch"] = Answer(np.full(16, 1e9), None)
    combined = combine(terms, answers, gradient=True)
    (a, da), (b, db) = by_autograd(SHAPES[shape], 0.7, x, scores["a"]), by_autograd({}, -2.0, x, scores["b"])
    np.testing.assert_allclose(combined.reward, a + b, rtol=1e-12)
    np.testing.assert_allclose(combined.gradient, da + db, rtol=1e-12, atol=1e-15)
    assert combined.scores.keys() == {"a", "b", "watch"}
    if "hinge" in SHAPES[shape] or "cap" in SHAPES[shape]:  # or neither side of the bend was tried
        flat = (da == 0).all((1, 2, 3))
        assert flat.any() and not flat.all()


def test_beyond_its_bound_a_term_is_flat_the_bound_included():
    answers = {"a": Answer(np.array([1.0, 2.0, 3.0]), np.ones((3, 1, 1, 1)))}
    capped = combine([term(cap=2.0)], answers, gradient=True)
    assert capped.reward.tolist() == [1, 2, 2] and capped.gradient.ravel().tolist() == [1, 0, 0]
    hinged = combine([term(hinge=2.0)], answers, gradient=True)
    assert hinged.reward.tolist() == [-1, 0, 0] and hinged.gradient.ravel().tolist() == [1, 0, 0]


def test_what_did_not_answer_is_left_out_and_what_is_not_finite_stays():
    terms = [term("a"), term("b", required=False)]
    slope = np.ones((2, 1, 1, 1), np.float32)
    alone = combine(terms, {"a": Answer(np.array([1, 2], np.float32), slope)}, gradient=True)
    assert alone.reward.tolist() == [1, 2] and alone.reward.dtype == np.float32 and alone.scores.keys() == {"a"}
    broken = combine([term(cap=0.0)], {"a": Answer(np.array([np.nan, 1], np.float32), slope)}, gradient=True)
    assert np.isnan(broken.reward[0]) and broken.reward[1] == 0
    for bound in ({"cap": 3.0}, {"hinge": 3.0}):
        infinite = combine([term(**bound)], {"a": Answer(np.array([np.inf, 1], np.float32), slope)}, gradient=True)
        assert np.isnan(infinite.reward[0]) and np.isnan(infinite.gradient[0]).all()


def test_a_missing_gradient_is_never_left_out_of_the_sum():
    with pytest.raises(ValueError, match="the model of 'a' gave no gradient"):
        combine([term()], {"a": Answer(np.array([1.0]), None)}, gradient=True)


def test_nothing_trained_is_an_empty_sum():
    combined = combine([term(held_out=True)], {"a": Answer(np.array([5.0]), None)}, gradient=False)
    assert combined.reward.tolist() == [0] and combined.gradient is None and combined.scores["a"].tolist() == [5]


def test_hinge_and_cap_exclude_each_other():
    with pytest.raises(ValidationError, match="has both hinge and cap"):
        term(hinge=1.0, cap=2.0)
