"""What happens around an optimiser's step: learning rate and moving average."""

from torch import Tensor

from dipp_ray.config import OptimSection


def learning_rate(optim: OptimSection, update: int) -> float:
    """Learning rate of update number `update` (from 0): linear warm-up over `warmup_steps`, then constant."""
    return optim.lr * min(1.0, (update + 1) / max(1, optim.warmup_steps))


def ema_update(average: Tensor, value: Tensor, decay: float) -> None:
    """average <- decay average + (1 - decay) value, in place, of any one shape."""
    average.lerp_(value, 1 - decay)
