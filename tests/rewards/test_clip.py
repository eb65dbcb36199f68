import json

import pytest
import torch
from comparing import PROMPTS, assert_finite_differences, assert_parity, assert_rows_stand_alone, photos
from safetensors.torch import load_file, save_file
from small_clip import all_ids, centred, save_as_clip, small_open_clip

from dipp_ray.errors import UserError
from dipp_ray.rewards.clip import ClipReward, ClipScore


@pytest.fixture(scope="module", params=["gelu", "quick_gelu"])
def pair(request, tmp_path_factory):
    """An original in plain torch, and the folder of its CLIPModel: LAION's models have GELU, OpenAI's quick GELU."""
    original, folder = small_open_clip(), tmp_path_factory.mktemp("clip")
    save_as_clip(original, folder, request.param)
    return original.openai() if request.param == "quick_gelu" else original, folder


@pytest.mark.parametrize("kind", [ClipReward, ClipScore])
def test_it_is_the_original(kind, pair):
    original, folder = pair
    scale = original.logit_scale.exp().item() if kind is ClipReward else 100.0
    assert abs(original.logit_scale.exp().item() - 100) > 1  # or the two would be one

    def expected(images):
        return scale * original.cosine(centred(images, top=1), all_ids(PROMPTS))

    model = kind(folder)
    assert_parity(lambda x: model.reward(x, PROMPTS), expected, photos(4, 22, 16))
    assert model.differentiable
    assert not any(p.requires_grad for p in model.parameters())


def test_gradient_is_that_of_finite_differences(pair):
    model = ClipScore(pair[1]).double()
    assert_finite_differences(lambda x: model.reward(x, PROMPTS), photos(4, 22, 16, torch.float64))


def test_a_row_does_not_depend_on_its_companions(pair):
    assert_rows_stand_alone(ClipReward(pair[1]), photos(4, 9, 13), PROMPTS)


def test_the_clip_score_is_not_clamped(pair):
    model = ClipScore(pair[1])
    images = photos(64, 8, 8)
    assert model.reward(images, ["red"] * 64).min() < 0 or model.reward(images, ["a blue square"] * 64).min() < 0


def test_the_folders_statistics_are_used(pair, tmp_path):
    save_as_clip(pair[0], tmp_path, "gelu")
    before = ClipScore(tmp_path).reward(photos(4, 8, 8), PROMPTS)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(half))
    after = ClipScore(tmp_path).reward(photos(4, 8, 8), PROMPTS)
    assert (after - before).abs().max() > 0.1
    # Younger versions of transformers write one file for all processors.
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": half, "processor_class": "C"}))
    assert torch.equal(ClipScore(tmp_path).reward(photos(4, 8, 8), PROMPTS), after)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("version https://git-lfs", "is no configuration of an image processor"),
        ('{"image_mean": null}', "is no configuration of an image processor"),
        ('{"image_std": [0.5, 0.5, 0]}', "must be three numbers, the latter above 0"),
        ('{"image_mean": [0.5]}', "must be three numbers"),
        ("[]", "is no configuration of an image processor"),
    ],
)
def test_a_faulty_image_processor_is_one_sentence_of_check(pair, tmp_path, said, sentence):
    save_as_clip(pair[0], tmp_path, "gelu")
    (tmp_path / "preprocessor_config.json").write_text(said)
    with pytest.raises(UserError, match=sentence):
        ClipScore.check_folder(tmp_path)


def test_constants_of_older_files_are_no_weights(pair, tmp_path):
    """CLIP and PickScore as published hold position_ids, which newer versions of transformers do not write."""
    save_as_clip(pair[0], tmp_path, "gelu")
    path = tmp_path / "model.safetensors"
    constants = {f"{tower}_model.embeddings.position_ids": torch.arange(5)[None] for tower in ("text", "vision")}
    save_file({**load_file(path), **constants}, path, metadata={"format": "pt"})
    ClipReward(tmp_path)


def test_other_weights_or_no_tokenizer_are_refused(pair, tmp_path):
    save_as_clip(pair[0], tmp_path, "gelu")
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    projection = weights.pop("text_projection.weight")
    save_file({**weights, "text_projection.bias": projection[0].clone()}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing: text_projection\.weight; unexpected: text_projection\.bias$"):
        ClipReward(tmp_path)
    weights["text_projection.weight"] = projection[:4].clone()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"of another shape: text_projection\.weight \[4, 16\] for \[16, 16\]$"):
        ClipReward(tmp_path)
    weights["text_projection.weight"] = projection
    save_file(weights, path, metadata={"format": "pt"})
    (tmp_path / "vocab.json").unlink()
    for look in (ClipReward.check_folder, ClipReward):
        with pytest.raises(UserError, match=r"tokenizer\.json \(or vocab\.json and merges\.txt\) is missing"):
            look(tmp_path)
