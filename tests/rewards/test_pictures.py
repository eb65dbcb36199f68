"""A picture is the same pixels whatever its file's mode, depth, palette and orientation are."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from dipp_ray.rewards.pictures import PictureError, PictureTooLarge, decode, size_of

FORMATS = ("PNG", "JPEG", "WEBP")
RED, WHITE = (255, 0, 0), (255, 255, 255)
COLOR = (51, 102, 204)


def pixels(data):
    return np.asarray(decode(data, FORMATS, 10_000, 8))


def saved(image, kind="PNG", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def flat(mode, color):
    return Image.new(mode, (4, 2), color)


def png(row, bits, color, *parts):
    """A PNG of one row of two pixels, as Pillow would not write it. parts: (name, data) before the pixels."""

    def part(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 2, 1, bits, color, 0, 0, 0)
    parts = (b"IHDR", head), *parts, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(part(*each) for each in parts)


def transparent(*values):
    return b"tRNS", struct.pack(f">{len(values)}H", *values)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (flat("1", 1), WHITE),
        (flat("L", 51), (51,) * 3),
        (flat("LA", (51, 255)), (51,) * 3),
        (flat("LA", (0, 51)), (204,) * 3),
        (flat("RGB", COLOR).quantize(4), COLOR),
        (flat("RGB", COLOR), COLOR),
        (flat("RGBA", (*COLOR, 255)), COLOR),
        (flat("RGBA", (255, 0, 0, 51)), (255, 204, 204)),
        (flat("RGBA", (9, 9, 9, 0)), WHITE),
        (flat("I;16", 65535), WHITE),
        (flat("I;16", 51 * 257), (51,) * 3),
        (flat("I;16", 51 * 257 + 128), (51,) * 3),
        (flat("I;16", 51 * 257 + 129), (52,) * 3),
    ],
)
def test_every_mode_of_a_png(image, expected):
    assert np.array_equal(pixels(saved(image)), np.broadcast_to(np.uint8(expected), (2, 4, 3)))


@pytest.mark.parametrize(
    ("image", "expected"),
    [(flat("L", 51), (51,) * 3), (flat("RGB", COLOR), COLOR), (flat("CMYK", (204, 153, 51, 0)), COLOR)],
    ids=["L", "RGB", "CMYK"],
)
def test_every_mode_of_a_jpeg(image, expected):
    assert np.abs(pixels(saved(image, "JPEG", quality=100)).astype(int) - expected).max() <= 2


def test_webp_with_transparency():
    assert np.array_equal(pixels(saved(flat("RGBA", (255, 0, 0, 51)), "WEBP", lossless=True))[0, 0], (255, 204, 204))


def test_a_palette_with_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert pixels(saved(image, transparency=1)).tolist() == [[list(RED), list(WHITE)]]
    assert pixels(saved(image, transparency=bytes([255, 51]))).tolist() == [[list(RED), [204, 204, 255]]]


@pytest.mark.parametrize(
    ("bits", "row", "said", "gray"),
    [
        (1, b"\x40", 0, 255),
        (2, b"\x60", 1, 170),
        (4, b"\x7a", 7, 170),
        (8, b"\x70\xaa", 0x70, 170),
        (16, b"\x70\x01\xaa\xaa", 0x7001, 170),
    ],
)
def test_one_gray_is_transparent_at_every_depth(bits, row, said, gray):
    assert pixels(png(row, bits, 0, transparent(said)))[0, :, 0].tolist() == [255, gray]


@pytest.mark.parametrize(
    ("bits", "row", "said"),
    [
        (8, bytes([9, 8, 7, 1, 2, 3]), (9, 8, 7)),
        (16, bytes([9, 1, 8, 2, 7, 3, 1, 0, 2, 0, 3, 0]), (0x901, 0x802, 0x703)),
    ],
)
def test_one_color_is_transparent_at_both_depths(bits, row, said):
    assert pixels(png(row, bits, 2, transparent(*said))).tolist() == [[list(WHITE), [1, 2, 3]]]


def test_sixteen_bits_with_transparency():
    assert pixels(png(b"\0\0\x33\x33" * 2, 16, 4))[0, 0].tolist() == [204] * 3
    assert pixels(png(b"\xff\xff\0\0\0\0\x33\x33" * 2, 16, 6))[0, 0].tolist() == [255, 204, 204]


UPRIGHT = np.uint8([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[9, 9, 9], [99, 99, 99], [200, 200, 200]]])
# How a camera stores the upright pixels, by the orientation that it says. EXIF 2.3: where row 0 and column 0 of what is
# stored lie in the upright picture, such as 6: row 0 is its right side, column 0 its top.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize(("kind", "how"), [("PNG", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_as_its_exif_says(kind, how, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = saved(Image.fromarray(np.ascontiguousarray(STORED[orientation])), kind, exif=exif, **how)
    assert np.array_equal(pixels(data), UPRIGHT) and size_of(data, FORMATS) == (3, 2)


def test_a_jpeg_is_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    halves = np.zeros((16, 8, 3), np.uint8)
    halves[:8] = 200
    data = saved(Image.fromarray(np.ascontiguousarray(np.rot90(halves))), "JPEG", exif=exif)
    assert size_of(data, FORMATS) == (8, 16) and np.abs(pixels(data).astype(int) - halves).max() <= 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_exif_that_cannot_be_read_turns_nothing():
    data = saved(Image.fromarray(UPRIGHT), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(pixels(data), UPRIGHT)


def test_the_bounds_hold_before_a_pixel_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("a pixel was decoded"))
    wide = png(b"", 8, 2)  # its pixels are missing
    with pytest.raises(PictureTooLarge, match="has 2 x 1 pixels, over the limit of 1: make it smaller"):
        decode(wide, FORMATS, 1, 8)
    with pytest.raises(PictureTooLarge, match=r"has 2 x 1 pixels, more than 1\.5 times as long as wide: crop it"):
        decode(wide, FORMATS, 2, 1.5)
    assert size_of(wide, FORMATS) == (2, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no PNG, JPEG or WEBP file"),
        (saved(flat("RGB", RED), "GIF"), "is no PNG, JPEG or WEBP file"),
        (saved(flat("RGB", RED))[:45], "does not decode: is the file whole?"),
        (png(b"", 8, 2), "does not decode: is the file whole?"),
        (png(bytes(2), 8, 3), "does not decode: is the file whole?"),
        (png(bytes(2), 8, 3, (b"tRNS", b"\0")), "does not decode: is the file whole?"),
    ],
)
def test_what_is_no_picture_is_one_sentence(data, message):
    with pytest.raises(PictureError) as caught:
        pixels(data)
    assert str(caught.value) == message
