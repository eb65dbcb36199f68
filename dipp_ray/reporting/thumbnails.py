"""Small pictures for a page: the file itself where it is small already, else a reduced WebP of bounded size."""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

SIDE = 800  # width of a reduced picture, pixels; at most twice as high
BYTES = 150_000  # of a picture in a page, at most: quality goes down until it fits
QUALITIES = (80, 60, 40, 20, 5)


def thumbnail(path: Path) -> tuple[str, bytes]:
    """(media type, bytes) of a picture for a page: the PNG `path` if it has at most BYTES bytes, else a WebP."""
    whole = path.read_bytes()
    if len(whole) <= BYTES:
        return "image/png", whole
    picture: Image.Image = Image.open(io.BytesIO(whole))
    small = b""
    for side in (SIDE, SIDE // 2, SIDE // 4):
        picture = reduced(picture, side)
        for quality in QUALITIES:
            small = _webp(picture, quality)
            if len(small) <= BYTES:
                return "image/webp", small
    return "image/webp", small


def reduced(picture: Image.Image, side: int) -> Image.Image:
    """The picture at most `side` wide and twice as high, smoothly; its transparency stays."""
    picture = picture.convert("RGBA")
    picture.thumbnail((side, 2 * side), Image.Resampling.LANCZOS)
    return picture


def image_link(path: Path, address: str, alt: str) -> str:
    """An <img> within the page, which links to the whole picture beside it."""
    kind, content = thumbnail(path)
    data = base64.b64encode(content).decode()
    return f'<a href="{escape(address)}"><img alt="{escape(alt)}" src="data:{kind};base64,{data}"></a>'


def _webp(picture: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=quality, method=4)
    return out.getvalue()
