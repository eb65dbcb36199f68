"""Where a folder holds a VAE: in a diffusers pipeline, or by itself. No torch here: drivers look before they start."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipp_ray.errors import UserError
from dipp_ray.hub.fetch import local
from dipp_ray.hub.selection import configurations
from dipp_ray.storage.hashing import hash_of_json

DEFAULT_SCALE = {"AutoencoderKL": 0.18215}  # of diffusers, where a configuration says none


@dataclass(frozen=True)
class VaeFolder:
    """path: the folder of the VAE itself. kind: its class in diffusers. config: its config.json."""

    path: Path
    kind: str
    config: dict

    @property
    def latent_channels(self) -> int:
        return self.config.get("latent_channels", self.config.get("z_dim", 4))  # 4: AutoencoderKL's own default

    @property
    def factor(self) -> int:
        return pixels_per_latent(self.config)

    @property
    def latents(self) -> str:
        """What its latents are, in words that two folders share where one decodes what the other encodes."""
        config = self.config
        means = [config.get(key) for key in ("latents_mean", "latents_std")]
        scale = config.get("scaling_factor", DEFAULT_SCALE.get(self.kind, 1.0)) or 1.0
        scaled = (
            f"scale {scale:g}, shift {config.get('shift_factor') or 0:g}"
            if means[0] is None
            else f"means and deviations {hash_of_json(means)[:8]}"
        )
        return f"{self.kind} of {self.latent_channels} channels, {self.factor} pixels a latent, {scaled}"


def is_of_videos(config: Mapping[str, Any]) -> bool:
    """Whether a VAE reads and gives [B, C, frames, h, w], of which a picture is the only frame."""
    return config.get("temperal_downsample") is not None


def pixels_per_latent(config: Mapping[str, Any]) -> int:
    """Pixels of an image's side per latent, from a VAE's config.json: every level but the last halves the side.

    A VAE of videos names its levels by whether they halve time too, in diffusers' spelling.
    """
    if is_of_videos(config):
        return 2 ** len(config["temperal_downsample"])
    levels = config.get("block_out_channels") or config.get("encoder_block_out_channels") or (0,)
    return 2 ** (len(levels) - 1)


def find_vae(folder: str | Path) -> VaeFolder:
    """The VAE of a diffusers pipeline folder, or of a folder that holds a VAE alone. Raises UserError where none is.

    Only diffusers' own classes: code of a model folder is never executed.
    """
    folder = local(folder, configurations)
    try:
        if (folder / "model_index.json").exists():
            library, kind = json.loads((folder / "model_index.json").read_text())["vae"]
            path = folder / "vae"
            config = json.loads((path / "config.json").read_text())
        else:
            path = folder
            config = json.loads((path / "config.json").read_text())
            library, kind = "diffusers", config["_class_name"]
        if not isinstance(config, dict):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it names none"
        raise UserError(
            f"{folder} is no diffusers pipeline folder with a VAE, nor a VAE's own ({reason}): give a folder whose "
            "model_index.json names one, or one whose config.json is a VAE's"
        ) from None
    if library != "diffusers" or not str(kind).startswith("Autoencoder"):
        raise UserError(f"{folder}: its VAE is {library}.{kind}: use one of the Autoencoder classes of diffusers")
    return VaeFolder(path, kind, config)
