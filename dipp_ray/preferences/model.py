"""Bradley-Terry on a CLIP reward: P(a preferred) = sigmoid(r_a - r_b); the order of pairs and their augmentation."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dipp_ray.diffusion.noise import key_of
from dipp_ray.preferences.config import FitSettings
from dipp_ray.rewards.clip import image_features, text_features


class PairModel(nn.Module):
    """The margin r(a, c) - r(b, c) of a CLIPModel as a reward. tokens: those of all prompts; statistics: mean, std."""

    def __init__(self, clip, tokens: dict[str, torch.Tensor], statistics: tuple):
        super().__init__()
        self.clip, self.tokens, self.statistics = clip, tokens, statistics

    def forward(self, a: torch.Tensor, b: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """a, b [B, 3, H, W] in [0, 1]; prompt [B], indices of the tokens -> margins [B]."""
        distinct, index = prompt.unique(return_inverse=True)
        text = text_features(self.clip, {key: value[distinct] for key, value in self.tokens.items()})[index]
        of_a, of_b = image_features(self.clip, torch.cat([a, b]), *self.statistics).chunk(2)
        return self.clip.logit_scale.exp() * ((of_a - of_b) * text).sum(-1)


def bradley_terry_loss(margin: torch.Tensor, label: torch.Tensor, pairs: int | None = None) -> torch.Tensor:
    """Cross-entropy of the labels [B], P(a preferred), under sigmoid(margin [B]): their sum over `pairs`.

    By default the mean over B. A worker that holds B of an update's pairs gives the number of them all: then the
    workers' losses, and their gradients, add up to the mean over the update, however unevenly it is shared.
    """
    return F.binary_cross_entropy_with_logits(margin, label, reduction="sum") / (pairs or len(label))


def rate(step: int, settings: FitSettings) -> float:
    """Factor on lr of the update after `step` updates: linear warm-up, then cosine to zero."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def batches(count: int, settings: FitSettings) -> Iterator[torch.Tensor]:
    """The rows [batch_size] of every update: all `count` pairs in a new order, again and again, keyed by the seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(settings.steps):
        while len(order) < settings.batch_size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[: settings.batch_size]
        order = order[settings.batch_size :]


def augment(both: torch.Tensor, settings: FitSettings, step: int, places: range) -> torch.Tensor:
    """uint8 [B, 2, 3, H, W] -> [0, 1]: both images of a pair moved alike, the border repeated, and noise added.

    `places`: of these pairs in their update. Step and place key the draws, so that it does not matter which worker
    makes them.
    """
    both = both / 255
    if not settings.shift and not settings.noise:
        return both
    changed = []
    for pair, place in zip(both, places, strict=True):
        random = np.random.Generator(np.random.Philox(key=key_of(settings.seed, step, 0, place, "augment")))
        if settings.shift:
            height, width = pair.shape[-2:]
            dy, dx = random.integers(-settings.shift, settings.shift + 1, 2)
            rows = (torch.arange(height) + int(dy)).clamp(0, height - 1)
            columns = (torch.arange(width) + int(dx)).clamp(0, width - 1)
            pair = pair[..., rows, :][..., columns]
        if settings.noise:
            noise = torch.from_numpy(random.standard_normal(pair.shape, dtype=np.float32))
            pair = (pair + settings.noise * noise).clamp(0, 1)
        changed.append(pair)
    return torch.stack(changed)
