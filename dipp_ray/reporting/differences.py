"""Differences of means with their 95 % intervals, so that noise is told from change."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from dipp_ray.reporting.progress import number

LEVEL = 0.95
BEGAN, ENDED = "base", ("aligned", "distilled")  # how an evaluation calls where a run began, and what it made of that


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


def apart(first: float, second: float) -> tuple[str, str]:
    """Two numbers, each in three significant digits, or in as many as show two digits of their difference."""
    gap = abs(first - second)
    if gap and math.isfinite(gap):
        decimals = min(12, 1 - math.floor(math.log10(gap) + 1e-9))
        if decimals > min(_decimals(first), _decimals(second)):
            return _fixed(first, decimals), _fixed(second, decimals)
    return number(first), number(second)


def _decimals(value: float) -> int:
    """Of three significant digits."""
    return max(0, 2 - math.floor(math.log10(abs(value)))) if value else 12


def _fixed(value: float, decimals: int) -> str:
    return f"{value:z,.{max(0, decimals)}f}".replace("-", "\N{MINUS SIGN}")


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


def pair_of(names: Collection[str]) -> tuple[str, str] | None:
    """(where the run began, what it made of that), of an evaluation's models; None unless both are there."""
    ended = next((name for name in ENDED if name in names), None)
    return (BEGAN, ended) if ended and BEGAN in names else None
