"""What happens around an optimiser's step: learning rate, moving average, measurements."""

from torch import Tensor

from dipp_ray.alignment.hyperparameters import Optimiser


def learning_rate(optim: Optimiser, update: int) -> float:
    """Learning rate of update number `update` (from 0): linear warm-up over `warmup_steps`, then constant."""
    return optim.lr * min(1.0, (update + 1) / max(1, optim.warmup_steps))


def ema_update(average: Tensor, value: Tensor, decay: float) -> None:
    """average <- decay average + (1 - decay) value, in place, of any one shape."""
    average.lerp_(value, 1 - decay)


def mean_of(records: list[dict]) -> dict[str, float]:
    """Each measurement's mean over the records that have it: micro-batches, or the repeats of a step."""
    keys = dict.fromkeys(key for record in records for key in record if key != "seconds")
    values = {key: [record[key] for record in records if key in record] for key in keys}
    return {key: sum(found) / len(found) for key, found in values.items()}
