import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.nn import functional as F

from dipp_ray.rewards.preprocess import normalise, pad_to_square, resize, to_square, to_square_torchvision


@pytest.mark.parametrize("sizes", [((33, 20), (8, 14)), ((8, 8), (24, 31)), ((16, 30), (16, 7)), ((9, 9), (9, 9))])
def test_resize_equals_torch(sizes):
    (height, width), (out_height, out_width) = sizes
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(images, size=(out_height, out_width), mode="bicubic", antialias=True)
    torch.testing.assert_close(resize(images, out_height, out_width), expected, rtol=0, atol=2e-6)


def test_gradient_of_resize_equals_torch():
    images = torch.rand(1, 3, 12, 20, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(1, 3, 7, 9, dtype=torch.float64)
    (ours,) = torch.autograd.grad((resize(images, 7, 9) * weight).sum(), images)
    torchs = F.interpolate(images, size=(7, 9), mode="bicubic", antialias=True)
    (expected,) = torch.autograd.grad((torchs * weight).sum(), images)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_half_precision_is_resized_in_fp32():
    images = torch.rand(1, 3, 12, 12).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = resize(images, 5, 5)
    assert out.dtype == torch.float32
    assert torch.equal(out, resize(images.float(), 5, 5))


def test_square_keeps_the_middle_of_the_long_side():
    images = torch.zeros(1, 3, 8, 24)
    images[..., 8:16] = 1
    assert torch.equal(to_square(images, 8), torch.ones(1, 3, 8, 8))
    assert torch.equal(to_square(images.transpose(2, 3), 8), torch.ones(1, 3, 8, 8))


def test_normalise_is_by_channel():
    images = torch.ones(1, 3, 1, 1)
    torch.testing.assert_close(normalise(images, (0, 0.5, 1), (1, 0.5, 2)).flatten(), torch.tensor([1.0, 1.0, 0.0]))


# What follows compares with PIL on photographs: 427 x 640, 8 bits.


@pytest.fixture(params=["china.jpg", "flower.jpg"])
def photograph(request):
    return load_sample_image(request.param)


def tensor(picture) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * (a - b).square().mean().log10().item()


def pil_short_side(picture: Image.Image, size: int) -> Image.Image:
    width, height = picture.size
    sides = (size, int(size * height / width)) if width < height else (int(size * width / height), size)
    return picture.resize(sides, Image.Resampling.BICUBIC)


def pil_transformers(picture: Image.Image, size: int) -> Image.Image:
    small = pil_short_side(picture, size)
    left, top = (small.width - size) // 2, (small.height - size) // 2
    return small.crop((left, top, left + size, top + size))


def pil_torchvision(picture: Image.Image, size: int) -> Image.Image:
    small = pil_short_side(picture, size)
    left, top = round((small.width - size) / 2.0), round((small.height - size) / 2.0)
    return small.crop((left, top, left + size, top + size))


def pil_open_clip(picture: Image.Image, size: int) -> Image.Image:
    width, height = picture.size
    scale = size / max(width, height)
    small = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size))
    square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return square


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("size", [224, 223])  # at 223 an odd number of columns is too many
@pytest.mark.parametrize(
    ("ours", "original"),
    [(to_square, pil_transformers), (to_square_torchvision, pil_torchvision), (pad_to_square, pil_open_clip)],
)
def test_photographs_come_out_as_by_pil(photograph, ours, original, size, upright):
    pixels = photograph.transpose(1, 0, 2).copy() if upright else photograph
    out, expected = ours(tensor(pixels), size), tensor(original(Image.fromarray(pixels), size))
    assert out.shape == expected.shape == (1, 3, size, size)
    assert psnr(out, expected) > 56.5  # measured: 56.9 to 57.9
    assert psnr(out.clamp(0, 1), expected) - psnr(out, expected) < 1  # what not clamping costs


def test_without_antialiasing_it_would_be_far_worse(photograph):
    expected = tensor(pil_short_side(Image.fromarray(photograph), 224))
    height, width = expected.shape[-2:]
    assert psnr(resize(tensor(photograph), height, width), expected) > 56.5
    plain = F.interpolate(tensor(photograph), size=(height, width), mode="bicubic")
    assert psnr(plain.clamp(0, 1), expected) < 40  # measured: 26.5 and 37.7


@pytest.mark.parametrize("square", [to_square, to_square_torchvision, pad_to_square])
def test_overshoot_has_a_gradient(square):
    """A bright edge overshoots 1; a clamp would cut the gradient there."""
    images = torch.zeros(1, 1, 16, 16)
    images[..., :8] = 1
    images.requires_grad_()
    out = square(images, 24)
    assert out.max() > 1
    (gradient,) = torch.autograd.grad(out[out > 1].sum(), images)
    assert gradient.abs().max() > 0


def test_the_centre_is_the_originals():
    """Of 3 rows too many transformers cuts 1 above, torchvision 2 (round half to even); of 5, both cut 2."""
    for surplus, ours, torchvisions in ((3, 1, 2), (5, 2, 2), (7, 3, 4)):
        rows = torch.arange(8.0 + surplus).view(1, 1, -1, 1).expand(1, 1, -1, 8)
        assert to_square(rows, 8)[0, 0, 0, 0] == ours
        assert to_square_torchvision(rows, 8)[0, 0, 0, 0] == torchvisions


def test_padding_is_black_and_its_larger_half_comes_last():
    out = pad_to_square(torch.ones(1, 3, 8, 5), 8)
    assert out[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    assert torch.equal(pad_to_square(torch.ones(1, 3, 5, 8), 8), out.transpose(2, 3))
