"""How well margins predict preferences: accuracy, log loss, Brier score, and whether the confidence is deserved."""

from statistics import NormalDist

import torch
from rich.table import Table

from dipp_ray.preferences.model import bradley_terry_loss

Z_95 = NormalDist().inv_cdf(0.975)


def pair_accuracy(margin: torch.Tensor, label: torch.Tensor) -> float | None:
    """Share of pairs whose margin [N] has the sign of label - 1/2; pairs labelled 1/2 are left out, None if all are."""
    decided = label != 0.5
    if not decided.any():
        return None
    return ((margin > 0) == (label > 0.5))[decided].float().mean().item()


def share_interval(share: float, trials: int) -> tuple[float, float]:
    """Where the true share lies by 95% confidence, if `share` of so many trials was seen (Wilson, 1927)."""
    spread = Z_95**2 / trials
    middle = (share + spread / 2) / (1 + spread)
    half = (spread * share * (1 - share) + spread**2 / 4) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def brier_score(margin: torch.Tensor, label: torch.Tensor) -> float:
    """Mean of (sigmoid(margin) - label)^2 over the pairs [N]: 0 is best, a coin has 1/4 on certain labels."""
    return (margin.double().sigmoid() - label).square().mean().item()


def reliability(margin: torch.Tensor, label: torch.Tensor, bins: int) -> list[dict]:
    """What was predicted and what came, by confidence: rows of the bins of equal width in [1/2, 1] that hold pairs.

    Confidence is the probability of the image that the model prefers, max(p, 1 - p); the outcome is the label's
    probability of that image. So nothing changes where a and b change places. Each row: low, high, pairs, mean
    confidence, mean preferred.
    """
    p = margin.double().sigmoid()
    confidence = torch.maximum(p, 1 - p)
    preferred = torch.where(margin >= 0, label.double(), 1 - label.double())
    bin_of = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    rows = []
    for number in range(bins):
        inside = bin_of == number
        if inside.any():
            rows.append(
                {
                    "low": 0.5 + number / (2 * bins),
                    "high": 0.5 + (number + 1) / (2 * bins),
                    "pairs": int(inside.sum()),
                    "confidence": confidence[inside].mean().item(),
                    "preferred": preferred[inside].mean().item(),
                }
            )
    return rows


def calibration_error(rows: list[dict]) -> float:
    """Expected calibration error: mean over the pairs of |confidence - preferred| of their bin."""
    total = sum(row["pairs"] for row in rows)
    return sum(row["pairs"] * abs(row["confidence"] - row["preferred"]) for row in rows) / total


def measure(margin: torch.Tensor, label: torch.Tensor, bins: int) -> dict:
    """All of it for margins [N] and labels [N]."""
    rows = reliability(margin, label, bins)
    return {
        "accuracy": pair_accuracy(margin, label),
        "decided": int((label != 0.5).sum()),
        "log_loss": bradley_terry_loss(margin, label).item(),
        "brier": brier_score(margin, label),
        "calibration_error": calibration_error(rows),
        "reliability": rows,
    }


MEASURES = (
    ("log_loss", "log loss, nats", "{:.3f}"),
    ("brier", "Brier score", "{:.3f}"),
    ("calibration_error", "expected calibration error", "{:.3f}"),
)


def measure_rows(record: dict) -> list[tuple[str, str, str]]:
    """(what, base, fitted) of fit.json's `base` and `held_out`, as text."""
    base, fitted = record["base"], record["held_out"]
    rows = [(label, form.format(base[key]), form.format(fitted[key])) for key, label, form in MEASURES]
    return [("accuracy (95% interval)", accuracy_cell(base), accuracy_cell(fitted)), *rows]


def accuracy_cell(part: dict) -> str:
    if not part["decided"]:
        return "no decided pair"
    low, high = share_interval(part["accuracy"], part["decided"])
    return f"{part['accuracy']:.3f} ({low:.2f} to {high:.2f})"


def reliability_cells(row: dict) -> tuple[str, ...]:
    """One row of the reliability table as text."""
    percent = (f"{row[key]:.1%}" for key in ("confidence", "preferred"))
    return f"{row['low']:.0%} to {row['high']:.0%}", f"{row['pairs']:,}", *percent


def tables(record: dict) -> tuple[Table, Table]:
    """What fit.json holds, for a terminal: held-out measures before and after, and the reliability table."""
    measures = Table(title=f"held out: {record['held_out_pairs']:,} pairs", title_justify="left")
    for name in ("", "base", "fitted"):
        measures.add_column(name, justify="right" if name else "left")
    for row in measure_rows(record):
        measures.add_row(*row)
    reliable = Table(title="reliability of the fitted model", title_justify="left")
    for name in ("confidence", "pairs", "mean confidence", "preferred indeed"):
        reliable.add_column(name, justify="right")
    for row in record["held_out"]["reliability"]:
        reliable.add_row(*reliability_cells(row))
    return measures, reliable
