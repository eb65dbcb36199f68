"""The ingress of a reward service with its models in this process: everything of the service but Ray."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from ray.exceptions import RayTaskError

from dipp_ray.models.latents import LatentDecoder
from dipp_ray.serving.core.ingress import RewardIngress
from dipp_ray.serving.core.scoring import ModelScorer
from dipp_ray.serving.deploy.application import ingress_settings
from dipp_ray.serving.deploy.config import ServiceConfig


class LocalResponse:
    """What a Serve handle answers: to be awaited, or cancelled."""

    def __init__(self, coroutine):
        self._task = asyncio.ensure_future(coroutine)

    def __await__(self):
        return self._task.__await__()

    def cancel(self):
        self._task.cancel()


class LocalHandle:
    """A handle to one model. `calls`: the batches that reached it, as (rows, prompts). `gate`: work waits for it."""

    def __init__(self, scorer: ModelScorer):
        self.scorer, self.calls, self.gate = scorer, [], None
        self._executor = ThreadPoolExecutor(1)
        self.answer = self.check_health = self

    def remote(self, *arguments):
        return LocalResponse(self._answer(*arguments) if arguments else asyncio.sleep(0))

    async def _answer(self, x, prompts, space, gradient, expires_s):
        self.calls.append((len(x), list(prompts)))
        if self.gate is not None:
            await self.gate.wait()
        x = torch.from_numpy(x.copy())
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, self.scorer.answer, x, prompts, space, gradient)
        except Exception as error:  # as Ray passes on whatever a replica raises
            raise RayTaskError("answer", "", error) from error


def local_service(config: ServiceConfig) -> RewardIngress:
    """The ingress of `config`, with its sum and tokens in force, in front of models in this process."""
    decoder = LatentDecoder.from_folder(config.vae) if config.vae else None
    handles = {model.name: LocalHandle(ModelScorer(model.term, decoder)) for model in config.models}
    service = RewardIngress(ingress_settings(config), handles)
    service.handles, service.reward_terms = handles, [model.term for model in config.models]
    service.reconfigure({"terms": [term.part.model_dump() for term in service.reward_terms], "tokens": {}})
    return service
