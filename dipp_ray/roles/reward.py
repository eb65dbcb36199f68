"""The reward-client actor of a trainer: it takes the reference of x0, owns deadline and retries, answers one reference.

Calls run concurrently in its event loop; no rank and no controller ever waits on a Serve response.
"""

import numpy as np
import ray

from dipp_ray.config import RewardSection
from dipp_ray.reporting.quiet import quiet_libraries
from dipp_ray.roles.trained import busy
from dipp_ray.serving.client import HandleTransport, RewardClient


@ray.remote(num_cpus=0)
class Reward:
    def __init__(self, application: str, settings: RewardSection):
        quiet_libraries()
        self.client = RewardClient(HandleTransport(application), settings.deadline_s, settings.on_nonfinite)

    @ray.method(num_returns=2)
    async def score(self, x0: np.ndarray, prompts: list[str], gradient: bool) -> tuple[dict, dict]:
        """The service's answer about latents x0 [b, C, h, w]: see `RewardClient.score`."""
        info = {}
        with busy(info):
            reply = await self.client.score(x0, prompts, gradient)
        return reply, info
