"""Prompts to embeddings: the memory, SDXL's null prompt, precision, and the role around them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dipp_ray.errors import UserError
from dipp_ray.models.pipeline import read_frame
from dipp_ray.models.text import TextEncoder
from settings import tiny_config
from tiny import PROMPTS, WORDS, pixart_pipeline, prompt_file, vae
from tiny_families import save_family

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pixart(tmp_path_factory):
    return pixart_pipeline(tmp_path_factory.mktemp("text") / "pixart")


def sdxl_pipeline(folder: Path, **settings) -> Path:
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, **{w + "</w>": i + 2 for i, w in enumerate(WORDS)}}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)
    text = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
    )
    StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(),
        **settings,
    ).save_pretrained(folder)
    return folder


def test_a_full_memory_loses_no_prompt_of_the_batch(pixart):
    plain, forgetful = TextEncoder(pixart, CPU), TextEncoder(pixart, CPU, remember=1)
    forgetful(PROMPTS[:1])
    batch = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    assert torch.equal(forgetful(batch).tokens, plain(batch).tokens)
    assert len(forgetful._known) == 1


def test_the_oldest_prompt_is_forgotten_first(pixart):
    text = TextEncoder(pixart, CPU)
    for prompt in ("a", "b"):
        text([prompt])
    text.remember = text._bytes
    text(["c"])
    assert list(text._known) == ["b", "c"]


def test_prompts_that_are_encoded_one_after_the_other_are_forgotten_too(pixart):
    text = TextEncoder(pixart, CPU, remember=0)
    for prompt in PROMPTS:
        text.row(prompt)
    assert list(text._known) == [PROMPTS[-1]] and text._bytes == text.row(PROMPTS[-1]).nbytes


def test_a_row_that_is_remembered_holds_its_own_memory_alone(pixart):
    for row in TextEncoder(pixart, CPU, together=4).rows(PROMPTS):
        assert all(part.untyped_storage().nbytes() == part.nbytes for part in row.parts if part is not None)


def test_a_family_that_takes_no_lists_is_one_sentence(pixart, monkeypatch):
    text = TextEncoder(pixart, CPU, together=4)
    encode = type(text.frame).encode
    one = lambda self, pipeline, prompt, device: encode(self, pipeline, str(prompt), device)  # noqa: E731
    monkeypatch.setattr(type(text.frame), "encode", one)
    with pytest.raises(UserError, match=r"PixArt.*encode gave 1 rows for 3 prompts: let it take a list"):
        text.rows(PROMPTS[:3])


@pytest.mark.parametrize("zeros", [True, False])
def test_the_null_prompt_of_sdxl_is_that_of_diffusers(tmp_path, zeros):
    folder = sdxl_pipeline(tmp_path / "sdxl", force_zeros_for_empty_prompt=zeros)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    with torch.no_grad():
        tokens, null, pooled, null_pooled = pipeline.encode_prompt(PROMPTS[0], do_classifier_free_guidance=True)
    embeds = TextEncoder(folder, CPU)([PROMPTS[0], ""])
    torch.testing.assert_close(embeds.tokens, torch.cat([tokens, null]))
    torch.testing.assert_close(embeds.pooled, torch.cat([pooled, null_pooled]))
    assert (embeds.tokens[1].abs().max() == 0) == zeros


def test_the_precision_is_that_of_the_role(pixart):
    assert TextEncoder(pixart, CPU)(PROMPTS).tokens.dtype == torch.float32
    assert TextEncoder(pixart, CPU, "bf16")(PROMPTS).tokens.dtype == torch.bfloat16


def test_the_role_decodes_in_micro_batches_with_one_decoder(pixart, tmp_path, monkeypatch):
    from dipp_ray.models.latents import LatentDecoder
    from dipp_ray.roles.text import Text

    settings = ("run.deterministic=false", "roles.text.dtype=bf16")
    config = tiny_config(tmp_path, pixart, prompt_file(tmp_path / "prompts.parquet"), *settings)
    text = Text.__ray_metadata__.modified_class(config)
    assert text.encoder.together > 1, "bits do not matter"
    assert text.encoder(PROMPTS).tokens.dtype == torch.bfloat16
    sizes, loaded = [], []
    decode, load = LatentDecoder.decode, LatentDecoder.from_folder
    monkeypatch.setattr(LatentDecoder, "decode", lambda self, x: sizes.append(len(x)) or decode(self, x))
    monkeypatch.setattr(LatentDecoder, "from_folder", lambda folder: loaded.append(folder) or load(folder))
    x0 = torch.randn(5, 1, 8, 8)
    images = text.decode(x0.numpy())
    text.decode(x0[:1].numpy())
    assert (sizes, len(loaded)) == ([2, 2, 1, 1], 1)
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(images), decode(load(pixart), x0))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sd15", "cross_attention_dim"),
        ("sdxl", "cross_attention_dim"),
        ("sdxl", "projection_class_embeddings_input_dim"),
        ("pixart", "caption_channels"),
        ("sd3", "joint_attention_dim"),
        ("sd3", "pooled_projection_dim"),
        ("sana", "caption_channels"),
        ("flux", "joint_attention_dim"),
        ("flux", "pooled_projection_dim"),
        ("qwenimage", "joint_attention_dim"),
        ("zimage", "cap_feat_dim"),
    ],
)
def test_encoders_that_the_network_was_not_trained_with_are_refused(name, key, tmp_path):
    folder = save_family(name, tmp_path / name)
    path = next(path for part in ("unet", "transformer") if (path := folder / part / "config.json").exists())
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {key: settings[key] + 16}))
    with pytest.raises(UserError, match=rf"reads text of \d+ numbers .*{key}.*text_encoder.* gives? \d+: take the enc"):
        read_frame(folder, resolution=(32, 32))
