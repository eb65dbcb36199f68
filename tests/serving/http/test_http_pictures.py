"""Files of images in JSON: what is read of them, what is refused."""

import base64
import io
import zlib

import numpy as np
import pytest
from http_calls import ask_json, client, encoded, made, picture, pixels, png, refused
from PIL import ExifTags, Image


def test_the_colors_and_the_orientation_of_files_are_kept(small):
    """By a model that answers the mean, one channel and one half at a time."""
    for channel in range(3):
        image = np.zeros((3, 8, 4), np.uint8)
        image[channel, :2] = 255
        reply = ask_json(small, **picture(encoded(image)), gradient=True)
        np.testing.assert_allclose(reply.json()["reward"], [5 / 12], rtol=1e-6)
        assert reply.json()["gradient"]["shape"] == [1, 3, 8, 4]


@pytest.mark.parametrize(
    ("file", "mean"),
    [
        (encoded(np.full((3, 16, 16), 51, np.uint8), "JPEG"), 0.2),
        (encoded(np.full((3, 16, 16), 51, np.uint8), "JPEG", "CMYK"), 0.2),
        (encoded(np.full((3, 16, 16), 51, np.uint8), "PNG", "L"), 0.2),
        (encoded(np.full((3, 16, 16), 255, np.uint8), "PNG", "1"), 1.0),
        (encoded(np.full((3, 16, 16), 51, np.uint8), "PNG", "P"), 0.2),
        (encoded(np.full((3, 16, 16), 51, np.uint8), "PNG", "RGBA"), 0.2),
        (png(4, 4, (b"\0" + b"\x33\x33" * 12) * 4, bits=16), 0.2),
        (png(4, 4, (b"\0" + b"\x33\x33" * 4) * 4, bits=16, color=0), 0.2),
    ],
    ids=["JPEG", "JPEG in CMYK", "gray", "black and white", "palette", "opaque", "16 bits a channel", "16-bit gray"],
)
def test_files_of_every_mode_are_read_as_rgb(small, file, mean):
    reply = ask_json(small, **picture(file))
    np.testing.assert_allclose(reply.json()["scores"]["bright"], [mean], atol=1.5 / 255)


def turned(image, orientation):
    """A file of the image that says by EXIF how it must be turned."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", exif=exif)
    return base64.b64encode(file.getvalue()).decode()


def test_sizes_are_those_of_the_upright_pictures(small):
    upright, lying = np.full((3, 16, 8), 51, np.uint8), np.full((3, 8, 16), 51, np.uint8)
    reply = ask_json(small, **picture(encoded(upright), turned(lying, 6)), gradient=True)
    assert reply.json()["gradient"]["shape"] == [2, 3, 16, 8]
    refused(ask_json(small, **picture(encoded(lying), turned(lying, 6))), 422, r"images\[1\] has 8 x 16 .* one size")


def test_a_lopsided_picture_is_refused_before_it_is_decoded(small):
    refused(ask_json(small, **picture(png(64, 4))), 422, r"images\[0\] has 64 x 4 pixels, more than 8 times")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_other_kinds_of_files_are_refused(small, kind):
    refused(ask_json(small, **picture(encoded(pixels(1)[0], kind))), 400, "no PNG or JPEG")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("====", "not base64|no PNG or JPEG"),
        (base64.b64encode(b"%!PS-Adobe-3.0 EPSF").decode(), "no PNG or JPEG"),
        (base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(), "does not decode"),
        ("data:image/png;base64," + encoded(pixels(1)[0]), "not base64"),
        ("äöü", "not base64"),
        (base64.b64encode(base64.b64decode(encoded(pixels(1)[0]))[:80]).decode(), "does not decode"),
        (png(8, 8, b"\0" * 10), "does not decode"),
        (png(0, 8), "does not decode"),
    ],
)
def test_what_is_no_picture_is_refused(small, file, message):
    refused(ask_json(small, **picture(encoded(pixels(1)[0]), file)), 400, r"images\[1\].*" + message)


def test_a_palette_that_is_missing_is_refused(small):
    refused(ask_json(small, **picture(png(8, 8, bytes(9 * 8), color=3, parts=[(b"tRNS", b"\0")]))), 400, "decode")


def note(text):
    return b"iTXt", b"note\0\1\0\0\0" + zlib.compress(text.encode(), 9)


def test_texts_in_a_picture_are_bounded_and_short_ones_are_left_alone(small):
    """A PNG's compressed texts are inflated when it is opened: a body of kilobytes may claim gigabytes."""
    flat = bytes(8 * 25)
    assert ask_json(small, **picture(png(8, 8, flat, parts=[note("a note" * 1000)]))).status_code == 200
    bomb = png(8, 8, flat, parts=[note("\N{GRINNING FACE}" + "a" * (2**20 - 4))] * 4)
    assert len(bomb) < 2**14
    refused(ask_json(small, **picture(bomb)), 400, r"images\[0\] does not decode")


def test_a_picture_is_measured_before_it_is_decoded(small, monkeypatch):
    """A small file may claim any size, and may really decode to it: no pixel is looked at."""

    def decode(*_):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(Image.Image, "convert", decode)
    refused(ask_json(small, **picture(png(60000, 60000))), 422, "claims more pixels")
    refused(ask_json(small, **picture(png(65, 4))), 422, "65 x 4 pixels: at most 64 a side")
    refused(ask_json(small, **picture(png(8, 8), png(8, 9000))), 422, r"images\[1\] has 8 x 9000")
    refused(ask_json(small, **picture(png(8, 8), png(8, 16))), 422, "one size")
    flat = png(64, 64, bytes(64 * 193))  # 12 KiB of pixels each
    assert len(flat) < 200
    refused(ask_json(small, **picture(*[png(64, 64, bytes(64 * 193))] * 9)), 422, "at most 8 rows")
    many = made(limits={"body_mib": 0.125, "rows": 64, "image_side": 64})
    error = refused(ask_json(client(many), **picture(*[flat] * 11)), 422, "send fewer rows")
    assert "11 images of 64 x 64" in error.message and "0.125 MiB" in error.message


def test_as_many_pixels_as_a_body_may_hold_are_decoded():
    opened = client(made(limits={"body_mib": 0.125, "rows": 64, "image_side": 64}))
    flat = png(64, 64, bytes(64 * 193))
    assert ask_json(opened, **picture(*[flat] * 10)).json()["reward"] == [0.0] * 10
