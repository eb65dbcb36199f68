"""What images are compared with by the Frechet distance: a folder of others, or statistics that were saved of them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dipp_ray.errors import UserError
from dipp_ray.evaluation.features import identity_of
from dipp_ray.evaluation.frechet import Gaussian, gaussian_of
from dipp_ray.evaluation.settings import FeatureSettings
from dipp_ray.storage.aside import whole_file

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
PART = 64  # images that are read and sent together


def check_reference(settings: FeatureSettings | None) -> None:
    """Raise UserError where network, images or statistics are not there, or do not belong together."""
    if settings is None:
        return
    identity = identity_of(settings)
    if settings.statistics and Path(settings.statistics).exists():
        read_statistics(settings.statistics, identity)
    elif settings.images is None:
        raise UserError(f"evaluation.features.statistics: there is no {settings.statistics}: set images to make it of")
    else:
        files_of(settings.images)


def reference_of(
    settings: FeatureSettings, features_of: Callable[[Iterator[list[bytes]], int], np.ndarray], say: Callable
) -> Gaussian:
    """The statistics: read, or made of the images and saved. features_of(parts of files, their number) -> [N, D]."""
    identity = identity_of(settings)
    path = settings.statistics and Path(settings.statistics)
    if path and path.exists():
        return read_statistics(path, identity)
    assert settings.images is not None, "checked"
    files = files_of(settings.images)
    parts = ([path.read_bytes() for path in files[i : i + PART]] for i in range(0, len(files), PART))
    gaussian = gaussian_of(features_of(parts, len(files)))
    if path:
        write_statistics(path, gaussian, identity)
        say(f"{path}: statistics of the {len(files)} images in {settings.images}")
    return gaussian


def files_of(folder: str | Path) -> list[Path]:
    """The images below a folder, in the order of their paths. Raises UserError for fewer than two."""
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS)
    if len(files) < 2:
        raise UserError(f"evaluation.features.images: {folder} holds {len(files)} images, and two are the least")
    return files


def write_statistics(path: Path, gaussian: Gaussian, identity: dict[str, Any]) -> None:
    with whole_file(path) as aside, aside.open("wb") as file:
        np.savez(
            file,
            mean=gaussian.mean,
            covariance=gaussian.covariance,
            count=gaussian.count,
            network=np.array(json.dumps(identity)),
        )


def read_statistics(path: str | Path, identity: dict[str, Any]) -> Gaussian:
    """Raises UserError where they are no statistics of ours, or of another network than `identity`."""
    try:
        with np.load(path, allow_pickle=False) as found:
            made_with = json.loads(str(found["network"]))
            gaussian = Gaussian(found["mean"], found["covariance"], int(found["count"]))
    except (OSError, ValueError, KeyError, AttributeError, EOFError):
        raise UserError(
            f"evaluation.features.statistics: {path} holds no statistics that were saved here: make them anew of images"
        ) from None
    differs = [key for key, value in identity.items() if made_with.get(key) != value]
    if differs:
        what = "another network" if "sha256" in differs else f"another {' and '.join(differs)}"
        raise UserError(
            f"evaluation.features: the statistics in {path} are of {what}: name the one that made them, or remove the "
            "file, to make it anew of images"
        )
    return gaussian
