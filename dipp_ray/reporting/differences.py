"""Differences of means with their 95 % intervals, so that noise is told from change."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean difference, and half the width of its 95 % interval."""

    mean: float
    within: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return abs(self.mean) > self.within

    @property
    def falls(self) -> bool:
        return self.clear and self.mean < 0

    @property
    def rises(self) -> bool:
        return self.clear and self.mean > 0


def half_width(values: Sequence[float] | np.ndarray) -> float | None:
    """Half the width of the 95 % interval of a mean by Student's t; None for fewer than two values, or not finite."""
    values = np.asarray(values, np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    return _t(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))


def paired(before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray) -> Difference | None:
    """After minus before over the same samples, each with itself: what is common to both cancels.

    None where they cannot be paired: other numbers of them, fewer than two, or values that are not finite.
    """
    if len(before) != len(after):
        return None
    differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    within = half_width(differences)
    return None if within is None else Difference(float(differences.mean()), within)


def unpaired(before: Sequence[float], after: Sequence[float]) -> Difference | None:
    """After minus before of two independent sets (Welch); None where one has fewer than two values, all finite."""
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if min(len(old), len(new)) < 2 or not (np.isfinite(old).all() and np.isfinite(new).all()):
        return None
    errors = np.array([old.var(ddof=1) / len(old), new.var(ddof=1) / len(new)])
    total = float(errors.sum())
    freedom = total**2 / float((errors**2 / [len(old) - 1, len(new) - 1]).sum()) if total else 1.0
    return Difference(float(new.mean() - old.mean()), _t(freedom) * math.sqrt(total))


def apart(*values: float, digits: int = 3) -> list[str]:
    """The values with the same decimals: as many as `digits` significant ones of the largest, and more where two that
    differ would read alike, until their smallest difference shows two digits."""
    finite = [abs(value) for value in values if math.isfinite(value) and value]
    gaps = [abs(a - b) for a in values for b in values if math.isfinite(a - b) and a != b]
    needed = [digits - 1 - math.floor(math.log10(max(finite)))] if finite else [0]
    if gaps:
        needed.append(1 - math.floor(math.log10(min(gaps))))
    decimals = min(12, max(0, *needed, 0))
    return [f"{value:z,.{decimals}f}".replace("-", "\N{MINUS SIGN}") for value in values]


def signed(difference: Difference) -> str:
    """'+0.320 ± 0.052': with as many decimals as show two significant digits of the interval."""
    return _with(difference.mean, difference.within, "+")


def with_interval(mean: float, within: float) -> str:
    """'1.240 ± 0.031', likewise."""
    return _with(mean, within, "")


def _with(mean: float, within: float, sign: str) -> str:
    rough = within or abs(mean)
    decimals = min(12, max(0, 1 - math.floor(math.log10(rough)))) if rough else 0
    return f"{mean:{sign}z,.{decimals}f} ± {within:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _t(freedom: float) -> float:
    """The quantile of Student's t that LEVEL leaves between its negative and itself."""
    from scipy.special import stdtrit  # slow to import, and most who import this compare nothing

    return float(stdtrit(freedom, (1 + LEVEL) / 2))
