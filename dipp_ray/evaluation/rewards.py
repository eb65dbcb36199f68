"""The rewards of an evaluation: in this process, or by the shared service that the run was trained with."""

import asyncio
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dipp_ray.config import RunConfig
from dipp_ray.serving.client.by_handle import HandleTransport
from dipp_ray.serving.client.configured import transport_of
from dipp_ray.serving.client.reward_client import RewardClient
from dipp_ray.serving.contract.records import ModelRecord, Space
from dipp_ray.serving.core.scoring import Scorer, ScoreReply

Say = Callable[[str], None]


class ServiceScorer:
    """A reward service with `Scorer`'s face, for scores of images alone."""

    def __init__(self, config: RunConfig, batch: int, say: Say, application: str | None = None):
        """batch: images at a time, fewer where the service takes less in one call. application: the run's own."""
        self._application = application
        self._settings, self._trainer, self._say = config.reward, config.run.name[:64], say
        self._batch = batch
        self.terms: list[ModelRecord] = self._asked(lambda client: client.describe()).models

    def score(self, images: Tensor, prompts: list[str], space: Space, gradient: bool) -> ScoreReply:
        """Images [B, 3, H, W] in [0, 1] and B prompts -> rewards and scores [B], as `Scorer.score`.

        NaN for a model that is not required and gave no answer, which is said.
        """
        sent = images.float().cpu().numpy()

        async def ask(client: RewardClient) -> list[dict]:
            limits = (await client.describe()).limits
            rows = min(self._batch, limits.rows_of(sent[0].nbytes))
            starts = range(0, len(sent), rows)
            return [await client.score(sent[i : i + rows], prompts[i : i + rows], gradient) for i in starts]

        parts = self._asked(ask)
        for name, reason in {name: reason for part in parts for name, reason in part["failed"].items()}.items():
            self._say(f"reward '{name}' gave no score for some of {len(sent)} images: {reason}")

        def joined(values: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(values))

        def scores_of(name: str) -> Tensor:
            return joined([part["scores"].get(name, np.full_like(part["reward"], np.nan)) for part in parts])

        scores = {term.name: scores_of(term.name) for term in self.terms}
        slope = joined([part["gradient"] for part in parts]) if gradient else None
        return ScoreReply(joined([part["reward"] for part in parts]), scores, slope)

    def _asked(self, ask):
        async def run():
            transport = HandleTransport(self._application) if self._application else transport_of(self._settings)
            async with RewardClient(
                transport, self._settings.deadline_s, on_nonfinite="drop", space="images", trainer=self._trainer
            ) as client:
                return await ask(client)

        return asyncio.run(run())


def scorer_of(
    config: RunConfig, batch: int, device: torch.device, say: Say, application: str | None = None
) -> Scorer | ServiceScorer | None:
    """What scores the images of an evaluation; None where no reward is configured. application: the run's own one."""
    if config.reward.shared or application:
        return ServiceScorer(config, batch, say, application)
    return Scorer(config.reward.terms, None, batch, device) if config.reward.terms else None
