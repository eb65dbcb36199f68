import pytest
import torch
from torch.nn import functional as F

from dipp_ray.rewards.preprocess import normalise, resize, to_square


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
