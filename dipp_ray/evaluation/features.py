"""The network whose features a Frechet distance is of: a TorchScript file, such as an Inception, or a CLIP folder.

Its distances compare with those of the same network and preprocessing alone, so that statistics name both.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipp_ray.errors import UserError
from dipp_ray.evaluation.settings import FeatureSettings
from dipp_ray.rewards.clip import clip_files, image_features, image_statistics, load_clip_model, require_clip
from dipp_ray.rewards.preprocess import normalise, resize
from dipp_ray.storage.hashing import hash_of_file, hash_of_json

BATCH = 32


def is_clip(settings: FeatureSettings) -> bool:
    """Whether the network is a CLIP folder or a hub's id of one. Raises UserError where it is nothing that is known."""
    path = Path(settings.network)
    if path.is_file():
        if settings.mean is None or settings.std is None:
            raise UserError(
                f"evaluation.features: a TorchScript file does not say how its images are normalised: set mean and std "
                f"of {settings.network}, such as [0.5, 0.5, 0.5] each, and its size"
            )
        return False
    require_clip(clip_files(settings.network))
    if settings.size is not None:
        raise UserError("evaluation.features.size: a CLIP folder says its own: leave it out")
    return True


def identity_of(settings: FeatureSettings) -> dict[str, Any]:
    """What its features depend on: the files' hash, and the preprocessing. Raises UserError as `is_clip`."""
    if not is_clip(settings):
        own = {"sha256": hash_of_file(settings.network), "size": settings.size}
        return own | {"mean": list(settings.mean or ()), "std": list(settings.std or ())}
    folder = clip_files(settings.network)
    files = sorted(path for path in folder.glob("*") if path.name == "config.json" or path.suffix == ".safetensors")
    mean, std = _statistics(settings, folder)
    return {
        "sha256": hash_of_json([[path.name, hash_of_file(path)] for path in files]),
        "size": None,
        "mean": list(mean),
        "std": list(std),
    }


def _statistics(settings: FeatureSettings, folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = image_statistics(folder)
    return settings.mean or mean, settings.std or std


@dataclass(frozen=True)
class FeatureNetwork:
    """`features` of a module that is frozen, on its device."""

    settings: FeatureSettings
    module: Any
    clip_statistics: tuple | None
    device: torch.device

    @staticmethod
    def load(settings: FeatureSettings, device: torch.device) -> "FeatureNetwork":
        """Raises UserError where it is not there, or does not load."""
        if is_clip(settings):
            folder = clip_files(settings.network)
            model = load_clip_model(folder).requires_grad_(False).eval().to(device)
            return FeatureNetwork(settings, model, _statistics(settings, folder), device)
        try:
            module = torch.jit.load(settings.network, map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"evaluation.features: {settings.network} is no TorchScript file ({reason})") from None
        return FeatureNetwork(settings, module, None, device)

    @torch.no_grad()
    def features(self, images: Tensor) -> np.ndarray:
        """Images [B, 3, H, W] in [0, 1] -> features [B, D], fp32. Raises UserError where the network gives none."""
        parts = [self._some(images[i : i + BATCH].to(self.device)) for i in range(0, len(images), BATCH)]
        return torch.cat(parts).float().cpu().numpy()

    def _some(self, images: Tensor) -> Tensor:
        if self.clip_statistics is not None:
            return image_features(self.module, images, *self.clip_statistics)
        assert self.settings.mean is not None and self.settings.std is not None, "checked"
        if self.settings.size is not None:
            images = resize(images, self.settings.size, self.settings.size)
        pixels = normalise(images.float(), self.settings.mean, self.settings.std)
        asked = {argument.name for argument in self.module.forward.schema.arguments}
        # The Inception of StyleGAN's repositories gives classes unless it is asked for features.
        try:
            found = self.module(pixels, **({"return_features": True} if "return_features" in asked else {}))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise UserError(
                f"evaluation.features: {self.settings.network} does not take images of {list(pixels.shape[1:])} "
                f"({reason}): set its size"
            ) from None
        found = found[0] if isinstance(found, (tuple, list)) else found
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(images):
            raise UserError(f"evaluation.features: {self.settings.network} gives no features [B, D] for images")
        return found.flatten(1)
