"""One replica of a decoder: it makes images of latents for all models, and takes their derivatives back."""

import time

import numpy as np
import torch

from dipp_ray.config import RoleSection
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.serving.core.replica import Replica, require_finite_weights
from dipp_ray.serving.core.scoring import Decoding


class DecoderReplica(Replica):
    """A VAE on one device. It keeps nothing between calls, so that any replica may take the next one: what goes back is
    decoded once more for its graph."""

    def __init__(
        self, name: str, folder: str, checkpoint: bool, role: RoleSection, deterministic: bool, stuck_s: float
    ):
        super().__init__(f"VAE '{name}'", role, deterministic, stuck_s)
        decoder = LatentDecoder.from_folder(folder, checkpoint=checkpoint)
        require_finite_weights(self._named, decoder)
        self._decoding = Decoding(decoder, self.device, self.autocast)

    async def decode(self, x: np.ndarray, gradient: bool, expires_s: float) -> np.ndarray:
        """Images [B, 3, H, W] in [0, 1] of latents x [B, C, h, w], in x's dtype. gradient: whether they are going to be
        pulled back. Raises DeadlineError where `expires_s` seconds are over before the work begins."""
        given = torch.from_numpy(np.array(x))  # it came read-only
        return await self.compute(lambda: self._decoding.images(given, gradient), time.monotonic() + expires_s)

    async def pull_back(self, x: np.ndarray, slopes: np.ndarray, expires_s: float) -> np.ndarray:
        """Derivatives [B, C, h, w] by the latents x, of those [B, 3, H, W] by their images. Raises as `decode`."""
        given, slope = torch.from_numpy(np.array(x)), torch.from_numpy(np.array(slopes))
        return await self.compute(lambda: self._decoding.pull_back(given, slope), time.monotonic() + expires_s)

    async def check_health(self) -> None:
        """Ray Serve restarts it where one batch has lasted too long."""
        self.is_busy()
