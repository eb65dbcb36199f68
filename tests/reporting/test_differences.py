import math

import numpy as np
import pytest
from scipy import stats

from dipp_ray.reporting.differences import Difference, apart, half_width, paired, signed, unpaired, with_interval


def test_a_paired_difference_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, and t of two degrees of freedom is 4.302653 at 95 %."""
    difference = paired([10.0, 20.0, 30.0], [11.0, 22.0, 33.0])
    assert difference.mean == pytest.approx(2.0)
    assert difference.within == pytest.approx(4.302652729696142 / math.sqrt(3))
    # Two values: t of one degree of freedom is tan(0.475 pi), the Cauchy's quantile.
    assert half_width([0.0, 2.0]) == pytest.approx(math.tan(0.475 * math.pi) * math.sqrt(2) / math.sqrt(2))


def test_intervals_are_those_of_scipys_t_tests():
    draw = np.random.default_rng(0)
    before = draw.normal(3, 2, 16).astype(np.float32)
    after = (before + draw.normal(0.1, 0.3, 16)).astype(np.float32)
    ours, theirs = paired(before, after), stats.ttest_rel(after.astype(float), before.astype(float))
    low, high = theirs.confidence_interval(0.95)
    assert (ours.mean - ours.within, ours.mean + ours.within) == pytest.approx((low, high))
    assert ours.clear == (theirs.pvalue < 0.05)
    other = draw.normal(4, 1, 7)
    ours, theirs = unpaired(before, other), stats.ttest_ind(other, before.astype(float), equal_var=False)
    assert (ours.mean - ours.within, ours.mean + ours.within) == pytest.approx(theirs.confidence_interval(0.95))


def test_what_is_common_to_both_cancels():
    """Samples differ by much, the change by little: paired it is seen, unpaired it is not."""
    before = np.arange(16.0) * 10
    after = before + 0.1 + 0.01 * np.arange(16) % 0.03
    assert paired(before, after).rises and not unpaired(before, after).clear
    assert paired(after, before).falls


def test_the_interval_holds_the_truth_nineteen_times_in_twenty():
    draw = np.random.default_rng(1)
    held = [abs(paired(a, a + d).mean - 0.5) <= paired(a, a + d).within
            for a, d in zip(draw.normal(0, 9, (4000, 12)), draw.normal(0.5, 1, (4000, 12)), strict=True)]  # fmt: skip
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


def test_what_cannot_be_compared_is_none():
    assert paired([1.0], [2.0]) is None and paired([1.0, 2.0], [1.0, 2.0, 3.0]) is None
    assert paired([1.0, math.nan], [1.0, 2.0]) is None and unpaired([1.0], [1.0, 2.0]) is None
    same = paired([1.0, 2.0], [1.0, 2.0])
    assert same == Difference(0.0, 0.0) and not (same.clear or same.falls or same.rises)
    assert unpaired([1.0, 1.0], [2.0, 2.0]) == Difference(1.0, 0.0)


def test_numbers_that_differ_read_so():
    assert apart(-5.66123, -5.66181) == ("−5.66123", "−5.66181")
    assert apart(7.63, 8.92) == ("7.63", "8.92") and apart(1.0, 1.0) == ("1.00", "1.00")
    assert apart(-1.2, -12345.678) == ("−1.20", "−12,346") and apart(0.0, 0.0) == ("0", "0")
    assert apart(7.0, 7.1) == ("7.00", "7.10") and apart(float("nan"), 1.0) == ("not finite", "1.00")
    assert signed(Difference(0.3217, 0.0512)) == "+0.322 ± 0.051"
    assert with_interval(-1.2412, 0.0312) == "−1.241 ± 0.031" and with_interval(1.0, 0.0) == "1.0 ± 0.0"
    assert signed(Difference(-0.0004, 0.0512)) == "+0.000 ± 0.051" and signed(Difference(0.0, 0.0)) == "+0 ± 0"
