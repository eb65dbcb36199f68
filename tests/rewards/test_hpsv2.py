from dataclasses import replace

import pytest
import torch
from comparing import (
    PROMPTS,
    assert_finite_differences,
    assert_parity,
    assert_rows_stand_alone,
    clip_ids,
    photos,
    save_clip_vocabulary,
)
from open_clip_original import OpenClip
from small_clip import SMALL, all_ids, small_open_clip
from torch.nn import functional as F
from transformers import CLIPModel

from dipp_ray.errors import UserError
from dipp_ray.rewards.hpsv2 import VIT_H_14, Hpsv2, Hpsv21, clean, clip_config, from_open_clip
from dipp_ray.rewards.weights import refuse_mismatch


@pytest.fixture(scope="module")
def original():
    return small_open_clip()


@pytest.fixture
def folder(original, tmp_path):
    save_clip_vocabulary(tmp_path)
    torch.save({"epoch": 1, "state_dict": original.state_dict()}, tmp_path / Hpsv2.FILE)
    return tmp_path


def benchmark(model, prompts):
    """images [B, 3, 16, 10] -> 100 cosines, as the benchmark: long side to 8, one black column left and two right."""

    def score(images):
        small = F.interpolate(images, size=(8, 5), mode="bicubic", antialias=True)
        return 100 * model.cosine(F.pad(small, (1, 2)), all_ids(prompts))

    return score


def test_it_is_the_original(original, folder):
    model = Hpsv2(folder, SMALL)
    assert clip_ids(PROMPTS[1], 99).count_nonzero() > SMALL.tokens  # or nothing would be cut
    assert_parity(lambda x: model.reward(x, PROMPTS), benchmark(original, PROMPTS), photos(4, 16, 10))


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("&amp;#114;ed", "red"),  # HTML's entities, resolved twice
        ("a \ufb01re", "a fire"),  # the ligature fi
        ("\uff52\uff45\uff44", "red"),  # of full width
        ("  RED\n circle ", "red circle"),
        ("don\u2019t", "don't"),
        ("\u00e2\u20ac\u0153red\u00e2\u20ac\u009d", '"red"'),  # UTF-8 that was read as Windows' code page
    ],
)
def test_prompts_are_read_as_open_clip_reads_them(folder, prompt, read):
    assert clean(prompt).lower() == read
    model, images = Hpsv2(folder, SMALL), photos(1, 16, 10)
    if read.replace(" ", "").isalpha():  # what the small vocabulary can spell
        assert torch.equal(model.reward(images, [prompt]), model.reward(images, [read]))


def test_gradient_is_that_of_finite_differences(folder):
    model = Hpsv2(folder, SMALL).double()
    assert_finite_differences(lambda x: model.reward(x, PROMPTS), photos(4, 16, 10, torch.float64))


def test_a_row_does_not_depend_on_its_companions(folder):
    assert_rows_stand_alone(Hpsv2(folder, SMALL), photos(4, 9, 13), PROMPTS)


def test_half_precision_files_are_computed_in_fp32(original, folder):
    halves = {key: value.half() for key, value in original.state_dict().items()}
    torch.save({"state_dict": halves}, folder / Hpsv2.FILE)
    model = Hpsv2(folder, SMALL)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())
    rounded = OpenClip(SMALL).eval()
    rounded.load_state_dict({key: value.float() for key, value in halves.items()})
    assert_parity(lambda x: model.reward(x, PROMPTS), benchmark(rounded, PROMPTS), photos(4, 16, 10))


def test_the_two_versions_are_two_files(original, folder):
    with pytest.raises(UserError, match=r"HPS_v2\.1_compressed\.pt is missing"):
        Hpsv21(folder, SMALL)
    torch.save({"state_dict": small_open_clip(seed=1).state_dict()}, folder / Hpsv21.FILE)
    images = photos(4, 8, 8)
    assert (
        Hpsv21(folder, SMALL).reward(images, PROMPTS) - Hpsv2(folder, SMALL).reward(images, PROMPTS)
    ).abs().min() > 0.1


def broken(weights, what):
    weights = dict(weights)
    if what == "missing":
        del weights["visual.ln_pre.bias"]
    elif what == "unexpected":
        weights["visual.head"] = torch.zeros(1)
    else:
        weights["text_projection"] = torch.zeros(16, 17)
    return weights


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"missing: vision_model\.pre_layrnorm\.bias$"),
        ("unexpected", r"unexpected: visual\.head$"),
        ("shape", r"of another shape: text_projection\.weight \[17, 16\] for \[16, 16\]$"),
    ],
)
def test_other_weights_are_refused(original, folder, what, message):
    torch.save({"state_dict": broken(original.state_dict(), what)}, folder / Hpsv2.FILE)
    with pytest.raises(UserError, match=message):
        Hpsv2(folder, SMALL)


def test_a_constant_mask_in_the_file_is_no_weight(original, folder):
    torch.save({"state_dict": {**original.state_dict(), "attn_mask": torch.zeros(11, 11)}}, folder / Hpsv2.FILE)
    Hpsv2(folder, SMALL)


def test_a_missing_or_another_tokenizer_is_refused(folder):
    with pytest.raises(UserError, match=r"ends texts with token 53 of 54, not with 49407"):
        Hpsv2(folder, replace(SMALL, eos=49_407))
    (folder / "merges.txt").unlink()
    for look in (Hpsv2.check_folder, lambda folder: Hpsv2(folder, SMALL)):
        with pytest.raises(UserError, match=r"vocab\.json and merges\.txt\) is missing .*clip-vit-large-patch14"):
            look(folder)


def test_published_sizes_are_vit_h_14s():
    with torch.device("meta"):
        model, original = CLIPModel(clip_config(VIT_H_14)), OpenClip(VIT_H_14)
    assert sum(p.numel() for p in original.parameters()) == 986_109_441  # as open_clip counts ViT-H-14
    refuse_mismatch(model.state_dict(), dict(from_open_clip(original.state_dict())), "the original")
