"""Folders as people hold them: other clothes are read, and what cannot work is one sentence from headers."""

import json
import os
import shutil
import warnings

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from dipp_ray.alignment.questions import generate
from dipp_ray.errors import UserError
from dipp_ray.models.components import check_components, check_model, load_model
from dipp_ray.models.export import export_error, export_pipeline
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.pipeline import load_denoiser, one_step_of, read_frame
from dipp_ray.models.plain_pipeline import load_pipeline
from dipp_ray.models.text import TextEncoder
from tiny_families import PROMPTS, save_family

CPU = torch.device("cpu")
PARTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strange")
    return {name: save_family(name, folder / name) for name in ("pixart", "sd15", "sd3")}


@pytest.fixture
def folder(originals, tmp_path):
    return shutil.copytree(originals["pixart"], tmp_path / "pixart")


def edited(path, leave_out=(), **settings):
    given = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in given.items() if key not in leave_out}))


def x0_of(folder):
    """The trainer's x0 of one step from this folder, and the noise that it came from."""
    frame = read_frame(folder)
    one_step = one_step_of(frame, 440, "unit")
    z = torch.randn(3, *frame.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network, text = load_denoiser(folder, "fp32", frame=frame), TextEncoder(folder, CPU, frame=frame)
        return one_step, z, generate(network, one_step, z, text(PROMPTS)), network.network.state_dict()


def refused(folder, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        check_components(read_frame(folder))
    assert "\n" not in str(caught.value)


# -- other clothes -----------------------------------------------------------------------------------------------------


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


def as_bin(folder):
    for part, name in PARTS.items():
        weights = load_file(folder / part / name)
        (folder / part / name).unlink()
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(weights, folder / part / name)


def as_shards(folder):
    for part, name in PARTS.items():
        weights, stem = load_file(folder / part / name), name.removesuffix(".safetensors")
        (folder / part / name).unlink()
        shards = [f"{stem}-0000{i + 1}-of-00002.safetensors" for i in range(2)]
        where = {key: shards[i % 2] for i, key in enumerate(weights)}
        for shard in shards:
            save_file(
                {key: weights[key] for key in weights if where[key] == shard}, folder / part / shard, {"format": "pt"}
            )
        (folder / part / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


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


# -- what cannot work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_a_weight_too_few_or_too_many_is_named(folder, part):
    path = folder / part / PARTS[part]
    whole = load_file(path)
    name = sorted(whole)[3]
    save_file({key: value for key, value in whole.items() if key != name}, path, {"format": "pt"})
    refused(folder, rf"{part}: its weights lack {name}")
    with pytest.raises(UserError, match=f"lack {name}"):  # nor is it loaded with what memory happens to hold
        library = "transformers" if part == "text_encoder" else "diffusers"
        load_model(folder / part, library, read_frame(folder).index[part][1], torch.float32)
    save_file(whole | {"strange.weight": torch.zeros(2)}, path, {"format": "pt"})
    refused(folder, rf"{part}: its weights hold an unexpected strange\.weight")
    save_file(whole | {name: torch.zeros(1, 2, 3, 4, 5)}, path, {"format": "pt"})
    refused(folder, rf"{part}: its weights hold in another shape {name}")


@pytest.mark.parametrize("part", PARTS)
def test_a_file_that_is_cut_or_a_pointer_is_one_sentence(folder, part):
    path = folder / part / PARTS[part]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused(folder, "is cut: its header speaks of")
    path.write_bytes(whole[:60])
    refused(folder, "cut within its header")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    refused(folder, "is a git-lfs pointer.*`git lfs pull`")
    path.write_bytes(b"")
    refused(folder, "no safetensors file")
    path.unlink()
    refused(folder, "holds no weights that are known here")


def test_a_tokenizer_that_is_a_pointer_or_nothing_is_one_sentence(folder):
    path = folder / "tokenizer" / "tokenizer.json"
    whole = path.read_bytes()
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(folder, "tokenizer.json is a git-lfs pointer")
    path.write_bytes(whole[:200])
    refused(folder, "the T5Tokenizer in .*tokenizer does not load")


class Code:
    """Whose unpickling would call something."""

    def __reduce__(self):
        return (warnings.warn, ("executed",))


def test_a_bin_with_more_than_tensors_is_never_opened(folder):
    as_bin(folder)
    path = folder / "transformer" / "diffusion_pytorch_model.bin"
    whole = path.read_bytes()
    torch.save({"weight": Code()}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        refused(folder, "holds more than tensors")
    path.write_bytes(whole[: len(whole) // 2])
    refused(folder, "is cut, or no file of torch")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(folder, "git-lfs pointer")


def test_a_missing_shard_is_named(folder):
    as_shards(folder)
    (folder / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    refused(
        folder, "of the 2 shards that its index names, diffusion_pytorch_model-00002-of-00002.safetensors is missing"
    )


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
def test_a_missing_component_is_named(folder, part):
    shutil.rmtree(folder / part)
    refused(folder, f"its model_index.json names {part}, but there is no such folder")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("model_index.json", "[]", "holds no JSON object"),
        ("model_index.json", "{", "is not JSON"),
        (
            "model_index.json",
            '{"_class_name": "PixArtAlphaPipeline", "../out": ["diffusers", "X"]}',
            "no diffusers pipeline",
        ),
        ("model_index.json", '{"_class_name": "PixArtAlphaPipeline", "vae": ["diffusers"]}', "no diffusers pipeline"),
        ("transformer/config.json", "null", "holds no JSON object"),
        ("one_step.json", "{", "is not JSON"),
    ],
)
def test_a_record_that_is_none_is_one_sentence(folder, name, text, sentence):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_frame(folder)


def test_channels_unlike_the_vaes_are_refused(folder):
    edited(folder / "vae" / "config.json", latent_channels=16)
    with pytest.raises(UserError, match="reads 4 channels, but its VAE has 16"):
        read_frame(folder)


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80}, "neither betas nor flow matching"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "neither betas nor flow matching"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "linear", "use_flow_sigmas": True},
            "use_flow",
        ),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "unheard"}, "the betas of its scheduler are not known"),
        (
            {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "prediction_type": "flow"},
            "prediction type flow",
        ),
    ],
)
def test_schedules_that_are_not_what_they_seem_are_refused(folder, scheduler, sentence):
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(UserError, match=sentence):
        read_frame(folder)


def test_betas_under_a_flow_family_are_refused(originals, tmp_path):
    folder = shutil.copytree(originals["sd3"], tmp_path / "sd3")
    (folder / "scheduler" / "scheduler_config.json").write_text(
        '{"_class_name": "DDIMScheduler", "beta_schedule": "linear"}'
    )
    with pytest.raises(UserError, match="is none of flow matching"):
        read_frame(folder)


@pytest.mark.parametrize(
    "condition", [{"time_cond_proj_dim": 8}, {"class_embed_type": "timestep"}, {"addition_embed_type": "text"}], ids=str
)
def test_a_unet_with_another_condition_is_refused(originals, tmp_path, condition):
    folder = shutil.copytree(originals["sd15"], tmp_path / "sd15")
    edited(folder / "unet" / "config.json", **condition)
    with pytest.raises(UserError, match=next(iter(condition))):
        read_frame(folder)
