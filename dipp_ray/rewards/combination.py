"""Several reward models as one: r = sum_k weight_k r_k, with held-out ones beside it."""

import contextlib

import torch
from torch import nn

from dipp_ray.rewards.loading import load_reward
from dipp_ray.rewards.terms import RewardTerm


class RewardCombination(nn.Module):
    """The weighted sum of the terms' rewards. Held-out terms are scored, without gradient, and enter no sum."""

    def __init__(self, terms: list[RewardTerm]):
        super().__init__()
        self.terms = list(terms)
        self.models = {term.name: load_reward(term) for term in self.terms}
        self._registered = nn.ModuleList(m for m in self.models.values() if isinstance(m, nn.Module))

    @property
    def trained(self) -> list[str]:
        """Names of the terms that enter the sum."""
        return [term.name for term in self.terms if not term.held_out]

    def forward(self, images: torch.Tensor, prompts: list[str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Images [B, 3, H, W] in [0, 1], B prompts -> the sum [B] and every raw score {name: [B]}.

        Without trained terms the sum is empty: zero.
        Raises ValueError where the prompts are not B, or a model answers another shape.
        """
        if len(prompts) != len(images):
            raise ValueError(f"{len(images)} images but {len(prompts)} prompts")
        total = torch.zeros(len(images), dtype=torch.promote_types(images.dtype, torch.float32), device=images.device)
        scores = {}
        for term in self.terms:
            with torch.no_grad() if term.held_out else contextlib.nullcontext():
                score = self.models[term.name].reward(images, prompts)
            if score.shape != (len(images),):
                raise ValueError(f"reward '{term.name}' answered shape {list(score.shape)}, not [{len(images)}]")
            scores[term.name] = score.detach()
            if not term.held_out:
                total = total + term.weight * score.to(total.dtype)
        return total, scores
