"""Files of pictures as a reward model takes them: RGB, 8 bits a channel, the way up in which they are looked at.

The service reads files that callers send and a fit those of its preference pairs. A model must see the same pixels of
the same file by either way, so the one reader stands here, with the models and below both.
"""

import io
from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

# Characters of texts in a PNG, which Pillow inflates before anything else: its own bound is 256 MiB an image.
PngImagePlugin.MAX_TEXT_MEMORY = 2**21
UPRIGHT = {  # EXIF's orientation, to what turns the pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING = (5, 6, 7, 8)  # width and height change places
FAST = 1  # of zlib's levels: a file is a fifth larger, and written in a quarter of the time
DAMAGED = "does not decode: is the file whole?"
WHITE = (255, 255, 255, 255)
# From the value that a PNG calls transparent to the pixels that Pillow makes of gray with less than 8 bits.
GRAY_STEP = {"1": 255, "L;2": 85, "L;4": 17}


class PictureError(ValueError):
    """A file is no picture, or a damaged one. The sentence lacks its subject, such as `it` or `images[3]`."""


class PictureTooLarge(PictureError):
    """A picture is beyond the bounds. The sentence lacks its subject."""


def size_of(data: bytes, formats: Sequence[str]) -> tuple[int, int]:
    """(width, height) of a picture as it is looked at, by its header: no pixel is decoded. Raises PictureError."""
    with _opened(data, formats) as image:
        return image.size[::-1] if _orientation(image) in LYING else image.size


def decode(data: bytes, formats: Sequence[str], most_pixels: int, most_aspect: float) -> Image.Image:
    """A picture in RGB, upright, over white where it is transparent; of 16 bits the nearest 8.

    formats: Pillow's names of those that are read. most_pixels, most_aspect: width times height, and the long side over
    the short one, checked before a pixel is decoded. Raises PictureTooLarge beyond them, PictureError for what is no
    such file. An eXIf that a PNG has behind its pixels is not looked at.
    """
    with _opened(data, formats) as image:
        width, height = image.size
        if width * height > most_pixels:
            raise PictureTooLarge(f"has {width} x {height} pixels, over the limit of {most_pixels:,}: make it smaller")
        if max(width, height) > most_aspect * min(width, height):
            raise PictureTooLarge(
                f"has {width} x {height} pixels, more than {most_aspect:g} times as long as wide: crop it"
            )
        orientation = _orientation(image)
        try:
            rgb = _rgb(image)
        except Exception:  # on damaged files the decoders raise whatever they stumble over
            raise PictureError(DAMAGED) from None
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def png_of(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels [H, W, 3]."""
    out = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(out, "PNG", compress_level=FAST)
    return out.getvalue()


@contextmanager
def _opened(data: bytes, formats: Sequence[str]):
    try:
        image = Image.open(io.BytesIO(data), formats=tuple(formats))
    except Image.DecompressionBombError:
        raise PictureTooLarge("claims more pixels than any image that is taken") from None
    except Exception:
        if _begins_like(data, formats):
            raise PictureError(DAMAGED) from None
        raise PictureError(f"is no {', '.join(formats[:-1])} or {formats[-1]} file") from None
    with image:
        yield image


def _begins_like(data: bytes, formats: Sequence[str]) -> bool:
    """Whether the first bytes are those of one of the formats, by which Pillow itself tells them."""
    tests = (Image.OPEN[name][1] for name in formats)
    return any(test is not None and test(data[:16]) for test in tests)


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF's orientation, 1 where there is none that can be read."""
    try:
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # a PNG's own decodes the pixels
    except Exception:
        return 1


def _rgb(image: ImageFile.ImageFile) -> Image.Image:
    if image.mode == "P" and image.palette is None:  # Pillow would make one up
        raise ValueError("no palette")
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):  # Pillow's conversion would cut at 255 what goes to 65535
        deep = np.asarray(image).astype(np.uint32)
        gray = (deep + 128) // 257
        return Image.fromarray(np.where(deep == transparent, 255, gray).astype(np.uint8)).convert("RGB")
    if image.mode in ("1", "L") and transparent is not None:
        image.info["transparency"] = transparent * GRAY_STEP.get(str(image.tile[0].args), 1)
    if image.mode == "RGB" and transparent is not None and image.tile[0].args == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in transparent)  # as Pillow reads the pixels
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, WHITE), over).convert("RGB")
