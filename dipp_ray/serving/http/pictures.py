"""PNG and JPEG files from outside as one array of pixels: sizes are read and checked before a pixel is decoded."""

import io

import numpy as np
from PIL import Image, PngImagePlugin

from dipp_ray.errors import CallError
from dipp_ray.serving.contract.failures import WireError
from dipp_ray.serving.contract.limits import MIB
from dipp_ray.serving.contract.wire import decoded

FORMATS = ("PNG", "JPEG")
# Characters of texts in a PNG, which Pillow inflates before anything else: its own bound is 256 MiB an image.
PngImagePlugin.MAX_TEXT_MEMORY = 2**21


def pixels_of(files: list[str], most_side: int, most_bytes: int) -> np.ndarray:
    """Base64 of PNG or JPEG files, all of one size -> uint8 [B, 3, H, W]. Transparency is dropped.

    Raises WireError for what is no such file, CallError for a side beyond `most_side`, for sizes that differ, and for
    more than `most_bytes` of pixels: a file of one colour is a thousand times smaller than what it decodes to.
    """
    sizes = []
    for i, text in enumerate(files):  # one open at a time: what a file holds beside its pixels goes with it
        with _opened(text, i) as image:
            sizes.append(image.size)
    width, height = sizes[0]
    for i, (wide, high) in enumerate(sizes):
        if max(wide, high) > most_side:
            raise CallError(f"images[{i}] has {wide} x {high} pixels: at most {most_side} a side")
        if (wide, high) != (width, height):
            raise CallError(
                f"images[{i}] has {wide} x {high} pixels, images[0] {width} x {height}: "
                "send images of one size in a call"
            )
    if (size := 3 * len(files) * width * height) > most_bytes:
        raise CallError(
            f"{len(files)} images of {width} x {height} are {size / MIB:.1f} MiB of pixels: at most "
            f"{most_bytes / MIB:g} MiB in one call, send fewer rows"
        )
    pixels = np.empty((len(files), 3, height, width), np.uint8)
    for i, text in enumerate(files):
        with _opened(text, i) as image:
            try:
                pixels[i] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            except Exception:  # on damaged files the decoders raise whatever they stumble over
                raise WireError(f"images[{i}] does not decode: is the file whole?") from None
    return pixels


def _opened(text: str, i: int) -> Image.Image:
    data = decoded(text, f"images[{i}]")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise CallError(f"images[{i}] claims more pixels than any image that is taken") from None
    except Exception:
        raise WireError(f"images[{i}] is no PNG or JPEG file") from None
    if image.mode.startswith(("I", "F")):  # Pillow's conversion would cut at 255 what goes to 65535
        raise WireError(f"images[{i}] has 16 bits a pixel: send 8")
    return image
