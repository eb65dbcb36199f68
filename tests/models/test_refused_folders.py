"""Folders that cannot work are one sentence, from headers alone."""

import json
import shutil
import warnings

import pytest
import torch
from dressed_folders import PARTS, as_bin, as_shards, edited
from safetensors.torch import load_file, save_file

from dipp_ray.errors import UserError
from dipp_ray.models.components import check_components, load_model
from dipp_ray.models.pipeline import read_frame
from dipp_ray.models.plain_pipeline import load_pipeline


@pytest.fixture
def copy_of(folders, tmp_path):
    """A copy of a family's folder, to be harmed."""
    return lambda name: shutil.copytree(folders(name), tmp_path / name)


@pytest.fixture
def folder(copy_of):
    return copy_of("pixart")


def refused(folder, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        check_components(read_frame(folder))
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("name", ["pixart", "sd15", "sdxl", "sd3", "flux", "sana"])
def test_a_tokenizer_without_its_vocabulary_is_missed_wherever_the_folder_is_read(copy_of, name):
    """transformers would make one of no words of it, and every prompt would be the same few tokens."""
    folder = copy_of(name)
    for path in sorted((folder / "tokenizer").iterdir()):
        if path.name in ("tokenizer.json", "vocab.json", "merges.txt") or path.suffix == ".model":
            path.unlink()
    refused(folder, r"tokenizer is incomplete: tokenizer\.json.* is missing: fetch it$")
    with pytest.raises(UserError, match=r"tokenizer is incomplete: tokenizer\.json"):
        load_pipeline(folder)


def test_a_pipeline_that_is_harmed_is_one_sentence_for_who_samples_it_too(folder):
    part = folder / "transformer" / PARTS["transformer"]
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(UserError, match="is cut: its header speaks of"):
        load_pipeline(folder)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(UserError, match="names tokenizer, but there is no such folder: fetch it"):
        load_pipeline(folder)


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


def test_betas_under_a_flow_family_are_refused(copy_of):
    folder = copy_of("sd3")
    (folder / "scheduler" / "scheduler_config.json").write_text(
        '{"_class_name": "DDIMScheduler", "beta_schedule": "linear"}'
    )
    with pytest.raises(UserError, match="is none of flow matching"):
        read_frame(folder)


@pytest.mark.parametrize(
    "condition", [{"time_cond_proj_dim": 8}, {"class_embed_type": "timestep"}, {"addition_embed_type": "text"}], ids=str
)
def test_a_unet_with_another_condition_is_refused(copy_of, condition):
    folder = copy_of("sd15")
    edited(folder / "unet" / "config.json", **condition)
    with pytest.raises(UserError, match=next(iter(condition))):
        read_frame(folder)


# What a network of these families gives, in channels of its latents' number; the other one is refused.
GIVES = [("sd15", "unet", 8), ("sdxl", "unet", 8), ("pixart", "transformer", 6), ("pixartsigma", "transformer", 2),
         ("sd3", "transformer", 32), ("sana", "transformer", 6), ("flux", "transformer", 32),
         ("qwenimage", "transformer", 8)]  # fmt: skip


@pytest.mark.parametrize(("name", "part", "channels"), GIVES)
def test_a_network_that_gives_other_channels_than_the_latents_is_refused(copy_of, name, part, channels):
    """A whole one, of which all weights fit its config.json: what it gives would be cut, or be no latents."""
    folder = copy_of(name)
    edited(folder / part / "config.json", out_channels=channels)
    with pytest.raises(UserError, match=r"gives \d+ channels \(out_channels\), and not the \d+ of its latents"):
        read_frame(folder)


def test_a_sigma_that_was_learned_or_not_is_known(copy_of):
    for name, channels in (("pixart", 4), ("pixart", 8), ("sana", 8), ("flux", None)):
        folder = copy_of(name)
        edited(folder / "transformer" / "config.json", out_channels=channels)
        read_frame(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "part"),
    [("sd15", "tokenizer"), ("sd15", "text_encoder"), ("sdxl", "text_encoder_2"), ("pixart", "tokenizer"),
     ("sd3", "text_encoder")],
)  # fmt: skip
@pytest.mark.parametrize("null", [True, False], ids=["null", "not named"])
def test_a_component_that_the_pipeline_needs_is_missed_where_none_is_named(copy_of, name, part, null):
    folder = copy_of(name)
    edited(folder / "model_index.json", () if null else (part,), **({part: [None, None]} if null else {}))
    refused(folder, rf"its model_index\.json names no {part}, which a \w+Pipeline needs")


def test_what_a_family_does_without_is_not_missed(copy_of):
    folder = copy_of("sd3")
    edited(folder / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    check_components(read_frame(folder))


def test_a_pointer_that_nobody_reads_is_passed_by(folder):
    """As a clone has them of which only the safetensors were pulled."""
    for name in ("diffusion_pytorch_model.bin", "flax_model.msgpack"):
        (folder / "transformer" / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    check_components(read_frame(folder))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("vae/config.json", "[]", "is no diffusers pipeline folder with a VAE"),
        ("text_encoder/config.json", "{", "text_encoder is incomplete: config.json is not JSON"),
        ("text_encoder/config.json", "[]", "config.json holds no JSON object"),
        (
            "scheduler/scheduler_config.json",
            '{"_class_name": "DDPMScheduler", "beta_schedule": "linear", "num_train_timesteps": "1000"}',
            "the betas of its scheduler are not known",
        ),
    ],
)
def test_a_configuration_that_is_none_is_one_sentence(folder, name, text, sentence):
    (folder / name).write_text(text)
    refused(folder, sentence)


@pytest.mark.parametrize("size", ["large", [8], [8, None], 0])
def test_a_sample_size_that_is_none_is_one_sentence(folder, size):
    edited(folder / "transformer" / "config.json", sample_size=size)
    refused(folder, r"sample_size=.*, which is no height and width: set model\.resolution")
