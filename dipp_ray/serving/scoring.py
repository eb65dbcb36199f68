"""Scores and exact gradients of the weighted reward: plain torch, the same in a service and in one process."""

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch

from dipp_ray.models.latents import LatentDecoder
from dipp_ray.rewards.combination import RewardCombination
from dipp_ray.rewards.terms import RewardTerm

Space = Literal["latents", "images"]


@dataclass(frozen=True)
class ScoreReply:
    """reward [B]: the weighted sum. scores: {name: [B]}, raw. gradient [B, C, h, w]: d reward_i / d x_i, or None."""

    reward: torch.Tensor
    scores: dict[str, torch.Tensor]
    gradient: torch.Tensor | None


class Scorer:
    """The reward models of `terms`, with the decoder in front for latents.

    Every call is worked off in chunks of `chunk_size` rows (the last may be shorter), so an answer is a function of
    the call alone: a row's last bits change with the size of its batch. `autocast`: the dtype of the networks'
    arithmetic, None for that of their weights.
    """

    def __init__(
        self,
        terms: list[RewardTerm],
        decoder: LatentDecoder | None,
        chunk_size: int = 64,
        device: str | torch.device = "cpu",
        autocast: torch.dtype | None = None,
    ):
        self.combination = RewardCombination(terms).to(device)
        self.decoder = decoder.to(device) if decoder is not None else None
        self.chunk_size = chunk_size
        self.device = torch.device(device)
        self._autocast = autocast

    def score(self, x: torch.Tensor, prompts: list[str], space: Space = "latents", gradient: bool = True) -> ScoreReply:
        """Score x and, if asked, differentiate the weighted reward by what was sent.

        x: latents [B, C, h, w] in the model's scale, or images [B, 3, H, W] in [0, 1]; fp32 or fp64. prompts: B texts.
        The reply lies on x's device; its gradient has x's shape and dtype. Non-finite values are returned as they
        are: what to do about them is the caller's policy. Raises ValueError for what cannot be scored.
        """
        self.validate(x, prompts, space, gradient)
        parts = [
            self._chunk(x[i : i + self.chunk_size], prompts[i : i + self.chunk_size], space, gradient)
            for i in range(0, len(x), self.chunk_size)
        ]
        return ScoreReply(
            torch.cat([part.reward for part in parts]),
            {name: torch.cat([part.scores[name] for part in parts]) for name in parts[0].scores},
            torch.cat([part.gradient for part in parts]) if gradient else None,
        )

    def validate(self, x, prompts: list[str], space: Space, gradient: bool) -> None:
        """Raise ValueError, before any work, if (x, prompts) is no call that this scorer can answer."""
        if space not in ("latents", "images"):
            raise ValueError(f"space is '{space}': give latents or images")
        if space == "latents" and self.decoder is None:
            raise ValueError("latents were sent, but no VAE was configured: send images")
        channels = 3 if space == "images" else self.decoder.latent_channels
        if x.ndim != 4 or len(x) == 0 or x.shape[1] != channels:
            raise ValueError(f"{space} of shape {list(x.shape)} were sent: expected [B, {channels}, height, width]")
        if len(prompts) != len(x):
            raise ValueError(f"{len(x)} {space} but {len(prompts)} prompts")
        if gradient and not self.combination.trained:
            raise ValueError("a gradient was asked for, but every reward term is held out")

    def _chunk(self, x: torch.Tensor, prompts: list[str], space: Space, gradient: bool) -> ScoreReply:
        autocast = torch.autocast(self.device.type, self._autocast) if self._autocast else contextlib.nullcontext()
        with torch.set_grad_enabled(gradient), autocast:
            sent = x.detach().to(self.device).requires_grad_(gradient)
            images = self.decoder.decode(sent) if space == "latents" else sent
            reward, scores = self.combination(images, prompts)
        slope = None
        if gradient:
            if not reward.requires_grad:
                raise ValueError(f"the rewards {self.combination.trained} have no gradient: hold them out")
            # Rows do not depend on each other, so the gradient of the sum is each row's own.
            (slope,) = torch.autograd.grad(reward.sum(), sent)
            slope = slope.to(x.device)
        return ScoreReply(
            reward.detach().to(x.device), {name: score.to(x.device) for name, score in scores.items()}, slope
        )
