"""What a careful reader of the metrics would point at, as plain sentences computed from the records alone."""

from dipp_ray.reporting.chart import series
from dipp_ray.reporting.differences import Difference, apart, signed, unpaired

FALL = 0.15  # a held-out reward has fallen when it lost this part of its range since its best, and beyond noise
RISE = 0.05  # the trained reward has risen when it gained this part of its range in that time, and beyond noise
CLIPPED = 0.5  # gradients are clipped often when this part of the updates is


def findings(records: list[dict], config: dict) -> list[str]:
    """Sentences about `records` (metrics.jsonl) under `config` (the run's, nested mappings); [] if all is well."""
    return (
        over_optimisation(records)
        + not_finite(records)
        + dropped(records)
        + clipped(records, config)
        + unfinished(records, config)
    )


def over_optimisation(records: list[dict]) -> list[str]:
    """The held-out reward falls while the trained one rises: the generator learns the reward model's faults.

    Both beyond noise: the fall over the same samples at both looks, which the records hold (`from_best/NAME`), the
    rise between the batches nearest to them.
    """
    reward = series(records, "reward", "reward").finite
    found = []
    for key in held_out_keys(records):
        points, name = series(records, key, key).finite, key.partition("/")[2]
        fall = fall_of(records, name)
        if len(points) < 3 or not reward or fall is None:
            continue
        best_step, difference = fall
        best, (last_step, last) = dict(points).get(best_step), points[-1]
        if best is None:
            continue
        span = max(value for _, value in points) - min(value for _, value in points)
        spread = max(value for _, value in reward) - min(value for _, value in reward)
        rise = unpaired(_near(reward, best_step), _near(reward, last_step))
        lost = difference.falls and -difference.mean > FALL * span
        if lost and rise is not None and rise.rises and rise.mean > RISE * spread:
            was, now = apart(best, last)
            before, after = apart(_level(reward, best_step), _level(reward, last_step))
            where = f"step {best_step}" if best_step else "the start"
            remedy = f"Take the generator of step {best_step}, or train" if best_step else "Train"
            found.append(
                f"Over-optimisation: the held-out reward “{name}” was best at {where} ({was}) and has fallen to {now} "
                f"at step {last_step} ({signed(difference)}, 95 % interval over the same samples), while the trained "
                f"reward rose from {before} to {after}. {remedy} with a smaller objective.reward_scale."
            )
    return found


def fall_of(records: list[dict], name: str) -> tuple[int, Difference] | None:
    """(the step of the best look, the last look minus it) as the last look recorded it; None where it did not."""
    looks = [record for record in records if f"held_out/{name}" in record]
    last: dict = looks[-1] if looks else {}
    step, mean, within = (last.get(f"{key}/{name}") for key in ("from_best_step", "from_best", "from_best_within"))
    if step is None or mean is None or within is None:
        return None
    return int(step), Difference(mean, within)


def not_finite(records: list[dict]) -> list[str]:
    """Values that were written as null."""
    found = []
    for key in sorted({key for record in records for key, value in record.items() if value is None}):
        steps = [record["step"] for record in records if key in record and record[key] is None]
        times = "once" if len(steps) == 1 else f"{len(steps)} times"
        found.append(f"{key} was not finite {times}, first at step {steps[0]}.")
    return found


def dropped(records: list[dict]) -> list[str]:
    """Samples whose reward was not finite and left out (reward.on_nonfinite: drop)."""
    shares = [record["reward_dropped"] for record in records if record.get("reward_dropped")]
    if not shares:
        return []
    return [
        f"Samples lost their reward term, which was not finite, in {len(shares)} steps (at most {max(shares):.0%})."
    ]


def clipped(records: list[dict], config: dict) -> list[str]:
    """Gradient norms above the clip in most updates: the clip, not the learning rate, sets the step."""
    found = []
    for role in ("generator", "score"):
        limit = (config.get(f"{role}_optim") or {}).get("grad_clip") or 0
        norms = [norm for _, norm in series(records, f"grad_norm/{role}", role).finite]
        share = sum(norm > limit for norm in norms) / len(norms) if norms else 0
        if limit and share > CLIPPED:
            found.append(f"The {role}'s gradient was clipped (norm above {limit:g}) in {share:.0%} of the updates.")
    return found


def unfinished(records: list[dict], config: dict) -> list[str]:
    """The run has not reached its last step."""
    steps = (config.get("run") or {}).get("steps")
    if not records or not steps or records[-1]["step"] >= steps:
        return []
    return [f"The run stands at step {records[-1]['step']} of {steps}."]


def held_out_keys(records: list[dict]) -> list[str]:
    """The held-out terms' keys, in order of first appearance."""
    return list(dict.fromkeys(key for record in records for key in record if key.startswith("held_out/")))


def _near(points: list[tuple[int, float]], step: int) -> list[float]:
    """Up to ten values nearest in step to `step`: a batch's reward alone is noisy."""
    return [value for _, value in sorted(points, key=lambda point: abs(point[0] - step))[:10]]


def _level(points: list[tuple[int, float]], step: int) -> float:
    near = _near(points, step)
    return sum(near) / len(near)
