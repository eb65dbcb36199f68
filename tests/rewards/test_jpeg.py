import io

import torch
from comparing import photos
from PIL import Image

from dipp_ray.rewards.jpeg import JpegReward
from dipp_ray.rewards.loading import is_differentiable


def test_it_is_minus_the_kilobytes_of_the_file():
    images = photos(2, 64, 48)
    buffer = io.BytesIO()
    eight_bits = (images[1] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(eight_bits).save(buffer, "JPEG", quality=95)
    score = JpegReward().reward(images, ["a", "b"])
    assert score.shape == (2,)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score[1].item(), -len(buffer.getvalue()) / 1000)


def test_plain_images_score_higher_and_overshoot_is_cut():
    noise, plain = photos(1, 64, 64), torch.ones(1, 3, 64, 64)
    reward = JpegReward()
    assert reward.reward(plain, [""]) > reward.reward(noise, [""]) + 1
    assert torch.equal(reward.reward(3 * noise - 1, [""]), reward.reward((3 * noise - 1).clamp(0, 1), [""]))


def test_it_says_that_it_has_no_gradient():
    assert not is_differentiable(JpegReward())
    assert not JpegReward().reward(photos(1, 8, 8).requires_grad_(), [""]).requires_grad
