"""Folders as people hold them: other clothes are read, loaded and exported whole."""

import json
import os
import shutil

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from dressed_folders import PARTS, as_bin, as_shards, edited
from safetensors.torch import load_file, save_file

from dipp_ray.alignment.questions import generate
from dipp_ray.models.components import check_components, check_model, load_model
from dipp_ray.models.export import export_error, export_pipeline
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.pipeline import load_denoiser, one_step_of, read_frame
from dipp_ray.models.plain_pipeline import load_pipeline
from dipp_ray.models.text import TextEncoder
from tiny_families import PROMPTS, save_family

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strange")
    return {name: save_family(name, folder / name) for name in ("pixart", "sd15")}


@pytest.fixture
def folder(originals, tmp_path):
    return shutil.copytree(originals["pixart"], tmp_path / "pixart")


def x0_of(folder):
    """The trainer's x0 of one step from this folder, and the noise that it came from."""
    frame = read_frame(folder)
    one_step = one_step_of(frame, 440, "unit")
    z = torch.randn(3, *frame.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network, text = load_denoiser(folder, "fp32", frame=frame), TextEncoder(folder, CPU, frame=frame)
        return one_step, z, generate(network, one_step, z, text(PROMPTS)), network.network.state_dict()


def as_published(folder):
    """PixArt-alpha before diffusers split its transformers."""
    edited(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    edited(
        folder / "transformer" / "config.json", ("use_additional_conditions", "interpolation_scale"),
        _class_name="Transformer2DModel", norm_type="ada_norm_single", num_vector_embeds=None,
        double_self_attention=False,
    )  # fmt: skip


def as_variant(folder):
    for part, name in PARTS.items():
        (folder / part / name).rename(folder / part / name.replace(".safetensors", ".fp16.safetensors"))


def as_halves(folder):
    for part, name in PARTS.items():
        weights = {key: value.half() for key, value in load_file(folder / part / name).items()}
        save_file(weights, folder / part / name, {"format": "pt"})


@pytest.mark.parametrize("dress", [as_published, as_variant, as_bin, as_shards, as_halves])
def test_other_clothes_are_checked_loaded_and_exported_whole(folder, tmp_path, dress):
    *_, expected, _ = x0_of(folder)
    dress(folder)
    frame = read_frame(folder)
    check_components(frame)
    one_step, z, x0, weights = x0_of(folder)
    if dress is as_halves:
        assert 0 < (x0 - expected).abs().max() < 0.05 * expected.abs().max()
    else:
        assert torch.equal(x0, expected)
    LatentDecoder.from_folder(folder)
    assert load_pipeline(folder).latents(PROMPTS, z, steps=2).isfinite().all()
    out = export_pipeline(frame, weights, one_step, tmp_path / "out")
    assert export_error(out, PROMPTS, z, x0.numpy()) < 1e-5  # by plain diffusers, without a word of precision
    check_components(read_frame(out))


def test_names_of_old_attention_blocks_are_known(originals, tmp_path):
    """The autoencoders of Stable Diffusion as they were published."""
    torch.manual_seed(0)
    settings = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 1}
    diffusers.AutoencoderKL(**settings).save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    new = load_file(path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in new.items():
        for now, then in old.items():
            name = name.replace(f"attentions.0.{now}.", f"attentions.0.{then}.")
        renamed[name] = value
    assert set(renamed) != set(new)
    save_file(renamed, path, {"format": "pt"})
    check_model(tmp_path / "vae", "diffusers", "AutoencoderKL")
    loaded = load_model(tmp_path / "vae", "diffusers", "AutoencoderKL", torch.float32).state_dict()
    assert all(torch.equal(loaded[name], new[name]) for name in new)


@pytest.mark.parametrize("name", ["pixart", "sd15"])
def test_names_of_older_text_encoders_are_known(originals, tmp_path, name):
    """CLIP under text_model with its positions written down, as published; T5 with its embeddings under both names."""
    folder = shutil.copytree(originals[name], tmp_path / name)
    before = TextEncoder(folder, CPU)(PROMPTS).tokens
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    if name == "pixart":
        weights["encoder.embed_tokens.weight"] = weights["shared.weight"].clone()
    else:
        weights = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in weights.items()}
        weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, path, {"format": "pt"})
    check_components(read_frame(folder))
    assert torch.equal(TextEncoder(folder, CPU)(PROMPTS).tokens, before)


def test_a_sentencepiece_model_without_tokenizer_json(folder, tmp_path):
    """As T5's tokenizer is published beside PixArt."""
    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text("\n".join(["a photo of a red cat on the table", "a blue dog"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "spiece"), vocab_size=40, hard_vocab_limit=False, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    shutil.copyfile(tmp_path / "spiece.model", folder / "tokenizer" / "spiece.model")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0})
    )
    text = TextEncoder(folder, CPU)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    assert text.pipeline.tokenizer("a red cat").input_ids == [*pieces.encode("a red cat"), 1]
    assert len(text(["a red cat"]).tokens[0]) == len(pieces.encode("a red cat")) + 1


def test_a_safety_checker_that_is_named_but_absent_stops_nothing(originals, tmp_path):
    folder = shutil.copytree(originals["sd15"], tmp_path / "sd15")
    edited(
        folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"], requires_safety_checker=True,
    )  # fmt: skip
    frame = read_frame(folder)
    check_components(frame)
    one_step, z, x0, weights = x0_of(folder)
    out = export_pipeline(frame, weights, one_step, tmp_path / "out")
    assert export_error(out, PROMPTS, z, x0.numpy()) < 1e-5
    DiffusionPipeline.from_pretrained(out, low_cpu_mem_usage=False)


def test_what_lies_about_in_a_folder_does_not_reach_an_export(folder, tmp_path):
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (folder / "v1-5-pruned.ckpt").write_bytes(b"pickle")
    (folder / "assets").symlink_to(tmp_path / "nowhere")
    (folder / "vae" / "dangling.json").symlink_to(tmp_path / "nowhere.json")
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    (folder / "text_encoder" / ".cache").mkdir()
    shutil.move(folder / "vae" / "config.json", tmp_path / "blob")
    (folder / "vae" / "config.json").symlink_to(tmp_path / "blob")  # as the hub's cache lays files out
    one_step, z, x0, weights = x0_of(folder)
    out = export_pipeline(read_frame(folder), weights, one_step, tmp_path / "out")
    assert export_error(out, PROMPTS, z, x0.numpy()) < 1e-5
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and not path.is_symlink()}
    assert sorted(names) == sorted(
        ["model_index.json", "one_step.json", "scheduler/scheduler_config.json"]
        + [f"{part}/{name}" for part, weights in PARTS.items() for name in ("config.json", weights)]
        + [f"tokenizer/{name}" for name in os.listdir(folder / "tokenizer")]
    )
