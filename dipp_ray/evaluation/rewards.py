"""The rewards of an evaluation: in this process, or by the shared service that the run was trained with."""

import asyncio

import numpy as np
import torch
from torch import Tensor

from dipp_ray.config import RunConfig
from dipp_ray.serving.client import RewardClient
from dipp_ray.serving.scoring import Scorer, ScoreReply, Space
from dipp_ray.serving.transports import transport_of
from dipp_ray.serving.wire import ModelRecord


class ServiceScorer:
    """A shared reward service with `Scorer`'s face, for scores of images alone."""

    def __init__(self, config: RunConfig):
        self._settings, self._trainer = config.reward, config.run.name[:64]
        self.terms: list[ModelRecord] = self._asked(lambda client: client.describe()).models

    def score(self, images: Tensor, prompts: list[str], space: Space, gradient: bool) -> ScoreReply:
        """Images [B, 3, H, W] in [0, 1] and B prompts -> rewards and scores [B], as `Scorer.score`."""
        sent = images.float().cpu().numpy()

        async def ask(client: RewardClient) -> list[dict]:
            rows = (await client.describe()).limits.rows
            starts = range(0, len(sent), rows)
            return [await client.score(sent[i : i + rows], prompts[i : i + rows], gradient) for i in starts]

        parts = self._asked(ask)
        names = [term.name for term in self.terms if all(term.name in part["scores"] for part in parts)]
        scores = {name: torch.from_numpy(np.concatenate([part["scores"][name] for part in parts])) for name in names}
        return ScoreReply(torch.from_numpy(np.concatenate([part["reward"] for part in parts])), scores, None)

    def _asked(self, ask):
        async def run():
            transport = transport_of(self._settings)
            async with RewardClient(transport, self._settings.deadline_s, "drop", "images", self._trainer) as client:
                return await ask(client)

        return asyncio.run(run())


def scorer_of(config: RunConfig, batch: int, device: torch.device) -> Scorer | ServiceScorer | None:
    """What scores the images of an evaluation; None where no reward is configured."""
    if config.reward.shared:
        return ServiceScorer(config)
    return Scorer(config.reward.terms, None, batch, device) if config.reward.terms else None
