"""PNG and JPEG files from outside as one array of pixels: sizes are read and checked before a pixel is decoded."""

from contextlib import contextmanager

import numpy as np

from dipp_ray.errors import CallError
from dipp_ray.rewards.pictures import PictureError, PictureTooLarge, decode, size_of
from dipp_ray.serving.contract.failures import WireError
from dipp_ray.serving.contract.limits import LimitsSection
from dipp_ray.serving.contract.records import MIB
from dipp_ray.serving.contract.wire import decoded

FORMATS = ("PNG", "JPEG")


def pixels_of(files: list[str], limits: LimitsSection) -> np.ndarray:
    """Base64 of PNG or JPEG files, all of one size -> uint8 [B, 3, H, W].

    Raises WireError for what is no such file, CallError for a side or an aspect beyond the limits, for sizes that
    differ, and for more pixels than a body may have bytes: a file of one colour is a thousand times smaller than what
    it decodes to.
    """
    sizes = []
    for i, text in enumerate(files):  # one open at a time: what a file holds beside its pixels goes with it
        with _naming(i):
            sizes.append(size_of(decoded(text, f"images[{i}]"), FORMATS))
    width, height = sizes[0]
    for i, (wide, high) in enumerate(sizes):
        if max(wide, high) > limits.image_side:
            raise CallError(f"images[{i}] has {wide} x {high} pixels: at most {limits.image_side} a side")
        if (wide, high) != (width, height):
            raise CallError(
                f"images[{i}] has {wide} x {high} pixels, images[0] {width} x {height}: "
                "send images of one size in a call"
            )
    if (size := 3 * len(files) * width * height) > limits.body_mib * MIB:
        raise CallError(
            f"{len(files)} images of {width} x {height} are {size / MIB:.1f} MiB of pixels: at most "
            f"{limits.body_mib:g} MiB in one call, send fewer rows"
        )
    pixels = np.empty((len(files), 3, height, width), np.uint8)
    for i, text in enumerate(files):
        with _naming(i):
            image = decode(decoded(text, f"images[{i}]"), FORMATS, limits.image_side**2, limits.aspect)
        pixels[i] = np.asarray(image).transpose(2, 0, 1)
    return pixels


@contextmanager
def _naming(i: int):
    """What is wrong with a picture, told of that picture."""
    try:
        yield
    except PictureTooLarge as error:
        raise CallError(f"images[{i}] {error}") from None
    except PictureError as error:
        raise WireError(f"images[{i}] {error}") from None
