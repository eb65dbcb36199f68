"""The families of models, a file each, and the one place where they are listed."""

import importlib

from dipp_ray.errors import UserError
from dipp_ray.models.families.family import Family
from dipp_ray.models.families.flux import Flux
from dipp_ray.models.families.pixart import PixArtAlpha, PixArtSigma
from dipp_ray.models.families.qwen_image import QwenImage
from dipp_ray.models.families.sana import Sana, SanaSprint
from dipp_ray.models.families.sd3 import StableDiffusion3
from dipp_ray.models.families.stable_diffusion import StableDiffusion
from dipp_ray.models.families.stable_diffusion_xl import StableDiffusionXL
from dipp_ray.models.families.z_image import ZImage

__all__ = ["FAMILIES", "Family", "family_of"]

FAMILIES: tuple[type[Family], ...] = (
    StableDiffusion,
    StableDiffusionXL,
    PixArtAlpha,
    PixArtSigma,
    StableDiffusion3,
    Sana,
    SanaSprint,
    Flux,
    QwenImage,
    ZImage,
)


def family_of(pipeline_class: str, folder, named: str | None = None) -> type[Family]:
    """The family of pipelines of a class, or the one that is named by 'package.module:Class'. Raises UserError."""
    if named is not None:
        own = _own(named)
        if pipeline_class not in own.pipelines:
            raise UserError(
                f"{folder} is a {pipeline_class}, but model.family={named} reads {', '.join(own.pipelines)}: "
                "correct model.family, or leave it out"
            )
        return own
    for family in FAMILIES:
        if pipeline_class in family.pipelines:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise UserError(
        f"{folder}: pipelines of class {pipeline_class} are not supported; known are {known}; "
        "name a family of your own by model.family=package.module:Class"
    )


def _own(named: str) -> type[Family]:
    module, separator, name = named.partition(":")
    if not (module and separator and name):
        raise UserError(f"model.family={named} names no class: write package.module:Class")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever its author's code raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"model.family={named}: {module} does not import ({reason}): correct it") from error
    if not (isinstance(found, type) and issubclass(found, Family)):
        raise UserError(f"model.family={named}: {module} has no subclass {name} of dipp_ray.models.families.Family")
    return found
