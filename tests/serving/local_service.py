"""The ingress of a reward service with its models in this process: everything of the service but Ray."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import torch
from ray.exceptions import RayTaskError

from dipp_ray.models.latents import LatentDecoder
from dipp_ray.serving.core.ingress import RewardIngress
from dipp_ray.serving.core.scoring import Decoding, ModelScorer
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
        x = torch.from_numpy(np.array(x))
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, self.scorer.answer, x, prompts, space, gradient)
        except Exception as error:  # as Ray passes on whatever a replica raises
            raise RayTaskError("answer", "", error) from error


class LocalDecoder:
    """A handle to one decoder. `calls`: what was asked of it, as (method, rows); `failing`: raised in the place of an
    answer, by method."""

    def __init__(self, decoding: Decoding):
        self.decoding, self.calls, self.failing = decoding, [], {}
        self._executor = ThreadPoolExecutor(1)
        self.decode, self.pull_back = (SimpleNamespace(remote=self._remote(name)) for name in ("decode", "pull_back"))
        self.check_health = SimpleNamespace(remote=lambda: LocalResponse(asyncio.sleep(0)))

    def _remote(self, method):
        async def answer(x, given, expires_s):
            self.calls.append((method, len(x)))
            if method in self.failing:
                raise RayTaskError(method, "", self.failing[method]) from self.failing[method]
            x = torch.from_numpy(np.array(x))
            work = self.decoding.images if method == "decode" else self.decoding.pull_back
            given = given if method == "decode" else torch.from_numpy(np.array(given))
            return await asyncio.get_running_loop().run_in_executor(self._executor, work, x, given)

        return lambda *arguments: LocalResponse(answer(*arguments))


def local_service(config: ServiceConfig) -> RewardIngress:
    """The ingress of `config`, with its sum and tokens in force, in front of models in this process."""
    decoder = LatentDecoder.from_folder(config.vae) if config.vae else None
    handles = {model.name: LocalHandle(ModelScorer(model.term, decoder)) for model in config.models}
    decoders = {vae.name: LocalDecoder(Decoding(LatentDecoder.from_folder(vae.folder), "cpu")) for vae in config.vaes}
    service = RewardIngress(ingress_settings(config), handles, decoders)
    service.handles, service.decoders = handles, decoders
    service.reward_terms = [model.term for model in config.models]
    service.reconfigure({"terms": [term.part.model_dump() for term in service.reward_terms], "tokens": {}})
    return service
