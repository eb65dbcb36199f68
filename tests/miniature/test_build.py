from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DiffusionPipeline, PixArtAlphaPipeline
from miniature_worlds import TINY, checksums, silent
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTokenizer

from dipp_ray.miniature import build
from dipp_ray.miniature.autoencoder import decode, encode
from dipp_ray.miniature.build import Miniature, build_miniature, load_teacher
from dipp_ray.miniature.digits import ALL_PROMPTS, load_scans
from dipp_ray.miniature.gold import GoldReward
from dipp_ray.miniature.pairs import from_png
from dipp_ray.miniature.teacher import PROMPT_TOKENS, encode_prompts, sample_teacher


def test_an_interrupted_build_goes_on_at_the_first_missing_stage(world, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "train_classifier", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_miniature(tmp_path, silent, TINY)
    paths = Miniature.at(tmp_path)
    assert paths.teacher.exists() and not paths.gold.exists() and not paths.pairs_train.exists()
    lines = []
    build_miniature(tmp_path, lines.append, TINY)
    made = [line.split()[1] for line in lines if " built in " in line]
    assert made == ["gold", "pairs", "reward_base"]
    # Built twice, once with an interruption: the same bits, and nothing left aside.
    assert checksums(tmp_path) == checksums(world.root)
    lines.clear()
    build_miniature(tmp_path, lines.append, TINY)
    assert lines == []


def test_a_changed_recipe_rebuilds_what_is_made_from_it(world, tmp_path):
    build_miniature(tmp_path, silent, TINY)
    lines = []
    build_miniature(tmp_path, lines.append, replace(TINY, gold=replace(TINY.gold, steps=31)))
    assert [line.split()[1] for line in lines if " built in " in line] == ["gold", "pairs"]
    assert GoldReward.load(tmp_path / "gold").state_dict().keys() == GoldReward.load(world.gold).state_dict().keys()


def test_prompts_and_reference_are_the_scans(world):
    train, test, _ = load_scans()
    for path, part in ((world.prompts_train, train), (world.prompts_eval, test)):
        assert pq.read_table(path)["prompt"].to_pylist() == list(part.prompts)
    reference = load_file(world.reference)
    assert torch.equal(reference["images"], test.images) and torch.equal(reference["digits"], test.digits)


def test_the_teacher_loads_as_any_pipeline_and_runs(world):
    pipeline = DiffusionPipeline.from_pretrained(world.teacher, local_files_only=True, low_cpu_mem_usage=False)
    assert isinstance(pipeline, PixArtAlphaPipeline)
    pipeline.set_progress_bar_config(disable=True)
    prompts = list(ALL_PROMPTS[:3])
    latents = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    # As a stranger would call it, with all 120 tokens, against the trimmed call of sample_teacher.
    options = {"num_inference_steps": 3, "guidance_scale": 1.5, "height": 8, "width": 8, "output_type": "pt"}
    whole = pipeline(prompts, latents=latents, use_resolution_binning=False, clean_caption=False, **options).images
    trimmed = sample_teacher(load_teacher(world.teacher), prompts, seed=5, steps=3, guidance_scale=1.5)
    assert whole.shape == (3, 3, 8, 8) and whole.std() > 0
    assert torch.allclose(whole, trimmed, atol=1e-5)


def test_words_are_tokens_and_the_null_prompt_is_one(world):
    pipeline = load_teacher(world.teacher)
    embeds, mask = encode_prompts(pipeline, [*ALL_PROMPTS, ""])
    assert embeds.shape == (91, PROMPT_TOKENS, TINY.teacher.text_width)
    assert mask[:-1].bool().all() and mask[-1].tolist() == [1, 0, 0, 0, 0, 0]
    assert pipeline.tokenizer.tokenize(ALL_PROMPTS[-1]) == ["▁a", "▁bold", "▁right-slanted", "▁handwritten", "▁nine"]


def test_latents_have_mean_zero_and_unit_deviation(world):
    train, _, _ = load_scans()
    vae = load_teacher(world.teacher).vae
    latents = encode(vae, train.images)
    assert abs(latents.mean().item()) < 1e-4 and latents.std().item() == pytest.approx(1, abs=1e-4)
    assert vae.config.scaling_factor != 1
    assert decode(vae, latents).shape == train.images.shape


def test_pairs_are_labelled_by_the_gold_reward(world):
    gold = GoldReward.load(world.gold)
    for path, count in ((world.pairs_train, TINY.pairs.train), (world.pairs_test, TINY.pairs.test)):
        table = pq.read_table(path)
        assert len(table) == count and table.column_names == ["prompt", "image_a", "image_b", "label"]
        prompts = table["prompt"].to_pylist()
        rewards = [gold.reward(from_png(table[side].to_pylist()), prompts) for side in ("image_a", "image_b")]
        expected = torch.sigmoid(TINY.pairs.sharpness * (rewards[0] - rewards[1]))
        assert torch.allclose(torch.tensor(table["label"].to_pylist()), expected, atol=1e-6)
        assert 0.35 < (expected > 0.5).float().mean() < 0.65


def test_the_reward_base_loads_and_knows_the_words(world):
    model = CLIPModel.from_pretrained(world.reward_base, local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(world.reward_base, local_files_only=True)
    tokens = tokenizer(list(ALL_PROMPTS), padding=True, return_tensors="pt")
    assert len({tuple(row) for row in tokens["input_ids"].tolist()}) == 90
    words = tokenizer.convert_ids_to_tokens(tokenizer("a bold right-slanted handwritten seven")["input_ids"])[1:-1]
    assert words == [f"{word}</w>" for word in ("a", "bold", "right", "-", "slanted", "handwritten", "seven")]
    # The unknown word's token is the end's: one of them in a prompt, then only padding.
    ends = (tokens["input_ids"] == tokenizer.unk_token_id) & tokens["attention_mask"].bool()
    assert ends.sum(1).eq(1).all()
    images = torch.rand(90, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = model(pixel_values=images, **tokens).logits_per_image
    assert logits.shape == (90, 90) and logits.std(dim=1).min() > 0
