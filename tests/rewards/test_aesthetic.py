import pytest
import torch
from blip_original import Head
from comparing import PROMPTS, assert_finite_differences, assert_parity, photos, randomise
from small_clip import SMALL, centred, save_as_clip, small_open_clip

from dipp_ray.errors import UserError
from dipp_ray.rewards.aesthetic import FILE, WIDTHS, AestheticReward
from dipp_ray.rewards.heads import LinearHead

SMALL_WIDTHS = (12, 8, 6, 4)


@pytest.fixture(scope="module")
def originals():
    head = Head(SMALL.features, SMALL_WIDTHS).eval()
    randomise(head)
    return small_open_clip(), head


@pytest.fixture(params=["beside", "clip"])
def folder(originals, tmp_path, request):
    clip, head = originals
    save_as_clip(clip, tmp_path if request.param == "beside" else tmp_path / "clip", "quick_gelu")
    torch.save(head.state_dict(), tmp_path / FILE)
    return tmp_path


def test_it_is_the_original(originals, folder):
    clip, head = originals
    clip.openai()
    model = AestheticReward(folder, SMALL_WIDTHS)
    assert_parity(
        lambda x: model.reward(x, PROMPTS), lambda x: head(clip.image(centred(x, top=2)))[:, 0], photos(4, 22, 16)
    )
    assert not any(p.requires_grad for p in model.parameters())


def test_gradient_is_that_of_finite_differences(folder):
    model = AestheticReward(folder, SMALL_WIDTHS).double()
    assert_finite_differences(lambda x: model.reward(x, PROMPTS), photos(4, 22, 16, torch.float64))


def test_the_head_is_read_in_the_older_format_too(originals, folder):
    expected = AestheticReward(folder, SMALL_WIDTHS).reward(photos(2, 8, 8), PROMPTS[:2])
    torch.save(originals[1].state_dict(), folder / FILE, _use_new_zipfile_serialization=False)
    assert torch.equal(AestheticReward(folder, SMALL_WIDTHS).reward(photos(2, 8, 8), PROMPTS[:2]), expected)


def test_another_head_is_refused(folder):
    with pytest.raises(UserError, match=r"of another shape: layers\.0\.bias \[12\] for \[1024\].* and 6 more"):
        AestheticReward(folder)


def test_published_widths_are_those_of_the_file():
    shapes = {key: tuple(value.shape) for key, value in LinearHead(768, WIDTHS).state_dict().items() if "weight" in key}
    assert shapes == {
        "layers.0.weight": (1024, 768),
        "layers.2.weight": (128, 1024),
        "layers.4.weight": (64, 128),
        "layers.6.weight": (16, 64),
        "layers.7.weight": (1, 16),
    }


def test_missing_files_are_named(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for look in (AestheticReward.check_folder, AestheticReward):
        with pytest.raises(UserError, match=r"sac\+logos\+ava1-l14-linearMSE\.pth is missing"):
            look(empty)
    (empty / FILE).touch()
    with pytest.raises(UserError, match=r"no CLIP model.*reads openai/clip-vit-large-patch14, in that folder or in "):
        AestheticReward.check_folder(empty)
