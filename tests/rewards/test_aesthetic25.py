"""The aesthetic predictor v2.5 on a tiny SigLIP, against both written out."""

import json
from itertools import pairwise

import pytest
import torch
from comparing import PROMPTS, assert_finite_differences, assert_parity, assert_rows_stand_alone, photos, randomise
from siglip_original import SiglipOriginal, aesthetic
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipModel, SiglipVisionModel

from dipp_ray.errors import UserError
from dipp_ray.rewards.aesthetic25 import FILE, Aesthetic25Reward
from dipp_ray.rewards.loading import load_reward
from dipp_ray.rewards.terms import RewardTerm

WIDTH, SIDE = 16, 12
CONFIG = SiglipConfig(
    vision_config=dict(
        hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=4,
    ),
    text_config=dict(
        hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=8,
        max_position_embeddings=4, projection_size=WIDTH,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    model = SiglipModel(CONFIG).eval()
    randomise(model)
    return model


@pytest.fixture(scope="module")
def head():
    generator, sizes = torch.Generator().manual_seed(1), (WIDTH, 12, 8, 6, 4, 1)
    made = {}
    for i, (a, b) in enumerate(pairwise(sizes)):
        made[f"scoring_head.{2 * i}.weight"] = torch.randn(b, a, generator=generator)
        made[f"scoring_head.{2 * i}.bias"] = torch.randn(b, generator=generator)
    return made


@pytest.fixture(params=["beside", "siglip", "vision alone"])
def folder(tower, head, tmp_path, request):
    where = tmp_path / "siglip" if request.param == "siglip" else tmp_path
    (tower.vision_model if request.param == "vision alone" else tower).save_pretrained(where)
    torch.save(head, tmp_path / FILE)
    return tmp_path


def original(tower, head, mean=0.5, std=0.5):
    weights = {key: value.detach() for key, value in tower.vision_model.state_dict().items()}
    siglip = SiglipOriginal(weights, layers=2, heads=2, patch=4)

    def score(images):
        square = F.interpolate(images, size=(SIDE, SIDE), mode="bicubic", antialias=True)  # whatever its shape was
        return aesthetic(siglip.pooled((square - mean) / std), head)

    return score


def test_it_is_the_original(tower, head, folder):
    model = Aesthetic25Reward(folder)
    assert_parity(lambda x: model.reward(x, PROMPTS), original(tower, head), photos(4, 22, 16))
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    assert_rows_stand_alone(model, photos(4, 22, 16), PROMPTS)


def test_gradient_is_that_of_finite_differences(folder):
    model = Aesthetic25Reward(folder).double()
    assert_finite_differences(lambda x: model.reward(x, PROMPTS), photos(4, 22, 16, torch.float64))


@pytest.fixture
def beside(tower, head, tmp_path):
    tower.save_pretrained(tmp_path)
    torch.save(head, tmp_path / FILE)
    return tmp_path


def test_its_statistics_are_those_of_the_folder(tower, head, beside):
    (beside / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.3] * 3}))
    model = Aesthetic25Reward(beside)
    assert_parity(lambda x: model.reward(x, PROMPTS), original(tower, head, 0.4, 0.3), photos(4, 12, 12))


def test_half_precision_of_the_file_is_read(tower, head, beside):
    torch.save({key: value.bfloat16() for key, value in head.items()}, beside / FILE)
    rounded = {key: value.bfloat16().float() for key, value in head.items()}
    model = load_reward(RewardTerm(name="v25", model="aesthetic-v2.5", folder=str(beside)))
    assert_parity(lambda x: model.reward(x, PROMPTS), original(tower, rounded), photos(4, 12, 12))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: head.pop("scoring_head.4.weight"), "layer 4 has weights None behind 8 features"),
        (lambda head: head.pop("scoring_head.4.bias"), "layer 4 has weights"),
        (
            lambda head: head.pop("scoring_head.8.weight") + head.pop("scoring_head.8.bias")[:, None],
            "ends with 4 scores",
        ),
        (
            lambda head: head.update({"scoring_head.0.weight": torch.zeros(12, 9)}),
            r"weights \[12, 9\] behind 16 features",
        ),
        (lambda head: head.update(extra=torch.zeros(1)), "holds extra, which is no layer"),
        (lambda head: head.clear(), "ends with 16 scores an image"),
    ],
)
def test_another_head_is_refused(head, beside, change, message):
    changed = dict(head)
    change(changed)
    torch.save(changed, beside / FILE)
    with pytest.raises(UserError, match=message):
        Aesthetic25Reward(beside)


def test_missing_files_and_weights_are_named(tower, beside, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for look in (Aesthetic25Reward.check_folder, Aesthetic25Reward):
        with pytest.raises(UserError, match=r"aesthetic_predictor_v2_5\.pth is missing"):
            look(empty)
    (empty / FILE).touch()
    with pytest.raises(UserError, match=r"there is no SigLIP model in .*so400m-patch14-384, in .*siglip or beside"):
        Aesthetic25Reward.check_folder(empty)
    torch.manual_seed(0)
    smaller = SiglipVisionModel(
        SiglipConfig(vision_config=CONFIG.vision_config.to_dict() | {"vision_use_head": False}).vision_config
    )
    smaller.save_pretrained(empty)
    config = json.loads((empty / "config.json").read_text())
    (empty / "config.json").write_text(json.dumps(config | {"vision_use_head": True}))
    torch.save({}, empty / FILE)
    with pytest.raises(UserError, match=r"missing: .*head\.attention"):
        Aesthetic25Reward(empty)
