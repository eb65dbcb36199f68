from dataclasses import replace

import pytest
import torch
from blip_original import OriginalImageReward
from comparing import (
    BERT_VOCABULARY,
    PROMPTS,
    assert_finite_differences,
    assert_parity,
    assert_rows_stand_alone,
    bert_ids,
    photos,
    randomise,
    save_bert_tokenizer,
    save_bert_vocabulary,
)
from torch.nn import functional as F

from dipp_ray.errors import UserError
from dipp_ray.rewards.imagereward import FILE, V1, ImageReward

SMALL = replace(
    V1,
    image=8,
    patch=4,
    vision_width=24,
    vision_layers=2,
    vision_heads=2,
    text_width=16,
    text_layers=2,
    text_heads=4,
    vocabulary=len(BERT_VOCABULARY) + 2,
    positions=40,
    head=(12, 8, 6, 4),
)


@pytest.fixture(scope="module")
def original():
    model = OriginalImageReward(SMALL).eval()
    randomise(model)
    return model


@pytest.fixture
def folder(original, tmp_path):
    save_bert_vocabulary(tmp_path)
    torch.save(original.state_dict(), tmp_path / FILE)
    return tmp_path


def published(model, prompts):
    """images [B, 3, 22, 16] -> scores, as the original: short side to 8, rows 2 to 9 of 11 (torchvision's centre)."""
    ids = torch.tensor([bert_ids(prompt, 35) for prompt in prompts])

    def score(images):
        small = F.interpolate(images, size=(11, 8), mode="bicubic", antialias=True)
        return model.score(small[:, :, 2:10], ids)

    return score


def test_it_is_the_original(original, folder):
    model = ImageReward(folder, SMALL)
    assert_parity(lambda x: model.reward(x, PROMPTS), published(original, PROMPTS), photos(4, 22, 16))
    assert not any(p.requires_grad for p in model.parameters())


def test_gradient_is_that_of_finite_differences(folder):
    model = ImageReward(folder, SMALL).double()
    assert_finite_differences(lambda x: model.reward(x, PROMPTS), photos(4, 22, 16, torch.float64))


def test_a_row_does_not_depend_on_its_companions(folder):
    assert_rows_stand_alone(ImageReward(folder, SMALL), photos(4, 9, 13), PROMPTS)


def test_the_prompt_matters_and_long_ones_are_cut(folder):
    model, image = ImageReward(folder, SMALL), photos(1, 8, 8)
    red, blue = (model.reward(image, [prompt]) for prompt in ("red circle", "blue circle"))
    assert (red - blue).abs() > 1e-3
    of = {count: model.reward(image, ["red " * count]) for count in (32, 33, 50)}
    assert torch.equal(of[33], of[50])  # 35 tokens with the two marks
    assert not torch.equal(of[32], of[33])


def test_both_forms_of_the_tokenizers_files_are_read(folder, tmp_path):
    expected = ImageReward(folder, SMALL).reward(photos(4, 8, 8), PROMPTS)
    (folder / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json \(or vocab\.txt\) is missing .*bert-base-uncased"):
        ImageReward(folder, SMALL)
    save_bert_tokenizer(folder)
    assert torch.equal(ImageReward(folder, SMALL).reward(photos(4, 8, 8), PROMPTS), expected)


def test_prompts_are_tokenised_once(folder):
    model, calls = ImageReward(folder, SMALL), []
    original = model.tokenizer
    model.tokenizer = lambda prompt, **kw: calls.append(prompt) or original(prompt, **kw)
    for _ in range(2):
        model.reward(photos(4, 8, 8), PROMPTS)
    assert calls == ["red circle", "a blue square", "red"]


def test_another_file_is_refused_by_keys(original, folder):
    weights = original.state_dict()
    del weights["blip.visual_encoder.blocks.1.attn.qkv.bias"]
    weights["mlp.layers.8.weight"] = torch.zeros(1, 1)
    torch.save(weights, folder / FILE)
    with pytest.raises(UserError, match=r"missing: vision.*layers\.1.*qkv\.bias; unexpected: head\.layers\.8\.weight$"):
        ImageReward(folder, SMALL)


def test_only_what_the_score_does_not_read_may_be_absent(original, folder):
    weights = {key: value for key, value in original.state_dict().items() if "_proj." not in key}
    del weights["blip.text_encoder.embeddings.position_ids"]
    torch.save(weights, folder / FILE)
    ImageReward(folder, SMALL)


def test_a_missing_file_and_a_wrong_tokenizer_are_refused(folder):
    with pytest.raises(UserError, match="too many tokens"):
        ImageReward(folder, replace(SMALL, vocabulary=5))
    (folder / FILE).unlink()
    for look in (ImageReward.check_folder, lambda folder: ImageReward(folder, SMALL)):
        with pytest.raises(
            UserError, match=r"ImageReward\.pt is missing in .*: put there the file of ImageReward v1\.0"
        ):
            look(folder)


def test_published_sizes():
    """ViT-L/16 and bert-base with cross-attention: the counts of their architectures, written out."""
    with torch.device("meta"):
        model = OriginalImageReward(V1)
    count = {name: sum(p.numel() for p in child.parameters()) for name, child in model.blip.named_children()}
    assert count["visual_encoder"] == 303_301_632  # timm's vit_large_patch16_224 without its classifier
    assert (
        count["text_encoder"]
        == 12 * (2 * 4 * (768 * 769) + 2 * 256 * 768 + 3 * 1536 + 2 * 4 * 768**2 + 5 * 768) + (30_524 + 512 + 2) * 768
    )
