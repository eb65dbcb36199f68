"""One image of a pair: bytes of a PNG, JPEG or WebP file -> uint8 pixels as the model sees them."""

import base64
import binascii

import numpy as np
import torch
from PIL import Image

from dipp_ray.errors import UserError
from dipp_ray.rewards import pictures
from dipp_ray.rewards.preprocess import to_square

FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST_PIXELS = 64_000_000  # width x height; a few bytes of a file can claim far more than memory holds
LARGEST_ASPECT = 8  # long side over the short one, as the service has it
LARGEST_SIDE = 2048  # pixels; to_square's matrix grows with the square of it
# How the three formats begin in base64; the middle one could be a path, but only an absolute one, which is refused.
BASE64_BEGINS = ("iVBORw0KGgo", "/9j/", "UklGR")


def decode(data: bytes, size: int) -> np.ndarray:
    """Image file -> uint8 [3, size, size]: short side resized, middle of the long side kept. Raises UserError."""
    try:
        image = pictures.decode(data, FORMATS, LARGEST_PIXELS, LARGEST_ASPECT)
    except pictures.PictureError as error:
        raise UserError(f"it {error}") from None
    if max(image.size) > LARGEST_SIDE:
        shrink = size / min(image.size)
        width, height = (max(size, int(side * shrink)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).transpose(2, 0, 1)
    if image.size == (size, size):
        return pixels
    rows = torch.from_numpy(pixels.copy())[None]
    return to_square(rows, size)[0].round().clamp(0, 255).to(torch.uint8).numpy()


def from_base64(text: str) -> bytes | None:
    """The bytes of an image in base64, bare or as a data: URI; None where the text is something else (a path).

    Raises UserError where it begins like an image and is no base64.
    """
    head, comma, body = text.partition(",")
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        if not text.startswith(BASE64_BEGINS):
            return None
        body = text
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise UserError(f"it is no base64 ({error}): encode the file's bytes without line breaks") from None
