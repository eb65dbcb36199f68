"""The reward-client actor of a trainer: it takes the reference of x0, owns deadline and retries, returns one reference.

Calls run concurrently in its event loop; no rank and no controller ever waits on a Serve response.
"""

import asyncio

import numpy as np
import ray

from dipp_ray.config import RewardSection
from dipp_ray.errors import RewardUnavailableError
from dipp_ray.reporting.quiet import quiet_libraries
from dipp_ray.roles.report import Report, Stopwatch
from dipp_ray.serving.client.configured import transport_of
from dipp_ray.serving.client.reward_client import RewardClient
from dipp_ray.serving.contract.records import VaeRecord
from dipp_ray.serving.direct import DirectTransport

DESCRIBE_S = 10.0  # a checkpoint waits for it


# Stateless: what a lost one owes is asked again of its successor.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class RewardClientActor:
    """application: the run's own Serve application; None for the shared service of the settings. run: its name, by
    which the service's queue tells trainers apart."""

    def __init__(self, application: str | None, settings: RewardSection, run: str):
        quiet_libraries()
        private = application is not None
        transport = DirectTransport(application) if application is not None else transport_of(settings)
        self.settings = settings
        self.client = RewardClient(
            transport,
            settings.deadline_s,
            on_nonfinite=settings.on_nonfinite,
            space="latents",
            trainer=run[:64],
            vae=None if private else settings.vae,
        )

    async def alive(self) -> None:
        """Returns as long as its event loop runs."""

    async def check(self, rows: int, gradient: bool, own: VaeRecord | None) -> dict:
        """What the service is, after `reward.terms`, calls of `rows` rows and the VAE of the run's `own` latents have
        been found there."""
        names = [term.name for term in self.settings.terms]
        held_out = [term.name for term in self.settings.terms if term.held_out]
        return (await self.client.check(names, held_out, rows, gradient, own)).to_plain()

    async def describe(self) -> dict:
        """What the service is now: see `ServiceRecord`. Raises RewardUnavailableError after DESCRIBE_S seconds."""
        try:
            async with asyncio.timeout(DESCRIBE_S):
                return (await self.client.describe()).to_plain()
        except TimeoutError:
            raise RewardUnavailableError(f"the reward service did not say within {DESCRIBE_S:g} s what it is") from None

    @ray.method(num_returns=2)
    async def score(self, x0: np.ndarray, prompts: list[str], gradient: bool, held_out: bool) -> tuple[dict, Report]:
        """What the service says about latents x0 [b, C, h, w]: see `RewardClient.score`."""
        watch = Stopwatch()
        return await self.client.score(x0, prompts, gradient, held_out), watch.report()
