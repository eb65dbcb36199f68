"""A generator starts from LoRA as people hold it, and what would lose something of it is one sentence of `check`."""

import shutil
import warnings

import pytest
import torch
from adapted_networks import LORA, adapted, noise, x0_of
from family_worlds import FLOW, OBLONG, size
from safetensors.torch import load_file, save_file

from dipp_ray.config import AdapterSection
from dipp_ray.errors import UserError
from dipp_ray.models.adapter_files import is_adapter, save_adapter
from dipp_ray.models.adapters import trained_weights
from dipp_ray.models.pipeline import one_step_of
from dipp_ray.models.start import starting_network
from dipp_ray.training.checks import check
from settings import tiny_config
from tiny import prompt_file


def files_of(network, frame, folder, kind):
    """The network's adapter as people hold it, in a folder; returns what is given as model.generator."""
    folder.mkdir()
    save_adapter(network, frame, folder)
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    if kind == "diffusers":
        return folder
    if kind == "file":
        return file
    if kind == "bin":
        torch.save(state, folder / "lora.bin")
        return folder / "lora.bin"
    if kind == "kohya":  # as its scripts write: flat names of modules, down and up, an alpha each, in half precision
        kohya = {}
        for name, tensor in state.items():
            module = name.removeprefix("unet.").split(".lora")[0].replace(".", "_")
            way = "lora_down" if ("lora_A" in name or "lora.down" in name) else "lora_up"
            kohya[f"lora_unet_{module}.{way}.weight"] = tensor
            kohya[f"lora_unet_{module}.alpha"] = torch.tensor(float(LORA.alpha))
        file.unlink()
        save_file(kohya, folder / "kohya.safetensors")
        return folder / "kohya.safetensors"
    raise ValueError(kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sd15", "diffusers"), ("sd15", "kohya"), ("sdxl", "file"), ("sdxl", "kohya"), ("pixart", "diffusers"),
     ("sd3", "file"), ("flux", "diffusers"), ("zimage", "file")],
)  # fmt: skip
@pytest.mark.parametrize("trained_on", [False, True], ids=["merged", "trained on"])
def test_a_generator_starts_from_an_adapter(name, kind, trained_on, folders, tmp_path, prompts):
    folder = folders(name)
    frame, network = adapted(name, folder)
    start = files_of(network.network, frame, tmp_path / "start", kind)
    assert is_adapter(start)
    settings = ["adapters.generator={rank: 2, alpha: 8}"] if trained_on else []
    config = config_of(name, tmp_path, folder, prompts, f"model.generator={start}", *settings)
    check(config)
    one_step, z = one_step_of(frame, config.model.t_star, "unit"), noise(frame)
    found = starting_network(config, "generator", frame)
    x0, ours = (x0_of(n, frame, folder, one_step, z) for n in (network, found))
    assert (ours - x0).abs().max() < 1e-5 * x0.abs().max()
    trained = [name for name, _ in trained_weights(found)]
    assert all(".lora_" in name for name in trained) if trained_on else not any("lora" in name for name in trained)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return prompt_file(tmp_path_factory.mktemp("prompts") / "prompts.parquet")


def config_of(name, folder, teacher, prompts, *overrides):
    return tiny_config(
        folder, teacher, prompts, f"model.resolution={list(size(name, OBLONG))}",
        f"model.t_star={1000 if name in FLOW else 440}", "model.input=sigma",
        "reward.terms=[{name: bright, model: 'tiny_models:Brightness'}]", *overrides,
    )  # fmt: skip


def test_a_file_without_alpha_is_scaled_by_one(folders, tmp_path, prompts):
    """As diffusers reads it: alpha is the rank. Who trained it otherwise has lost it."""
    folder = folders("sd15")
    frame, network = adapted("sd15", folder, AdapterSection(rank=2))
    start = files_of(network.network, frame, tmp_path / "start", "bin")
    found = starting_network(
        config_of("sd15", tmp_path, folder, prompts, f"model.generator={start}"), "generator", frame
    )
    one_step, z = one_step_of(frame, 440, "unit"), noise(frame)
    x0, ours = (x0_of(n, frame, folder, one_step, z) for n in (network, found))
    assert (ours - x0).abs().max() < 1e-5 * x0.abs().max()


def with_text_encoder(file):
    state = load_file(file)
    save_file(state | {"text_encoder.layers.0.q_proj.lora_A.weight": torch.zeros(2, 32)}, file)


def of_another_module(file):
    state = load_file(file)
    name = next(iter(state))
    save_file(state | {name.replace("attentions.0", "attentions.9"): state[name].clone()}, file)


def of_another_width(file):
    state = load_file(file)
    save_file({name: t[:, :5].contiguous() if "lora.down" in name else t for name, t in state.items()}, file)


def of_dora(file):
    state = load_file(file)
    save_file(state | {"unet.mid_block.attentions.0.to_q.dora_scale": torch.ones(4)}, file)


def cut(file):
    file.write_bytes(file.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (with_text_encoder, "it adapts text encoders too"),
        (of_another_module, "LoRA"),
        (of_another_width, "does not fit the UNet2DConditionModel"),
        (of_dora, "is a DoRA"),
        (cut, "is cut"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_lora_that_would_lose_something_is_one_sentence_of_check(harm, sentence, folders, tmp_path, prompts):
    folder = folders("sd15")
    frame, network = adapted("sd15", folder)
    file = files_of(network.network, frame, tmp_path / "start", "file")
    harm(file)
    with pytest.raises(UserError, match=sentence):
        check(config_of("sd15", tmp_path, folder, prompts, f"model.generator={file}"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["adapters.generator={rank: 2, targets: [to_x]}"], r"adapters.generator.targets: 'to_x' matches no module"),
        (["adapters.score={rank: 2, targets: [to_q, k]}"], r"adapters.score.targets: 'k' matches no module"),
        (
            ["adapters.score={rank: 2, targets: [norm1]}"],
            r"adapters.score.targets: 'norm1' is a GroupNorm, which LoRA cannot adapt",
        ),
        (
            ["adapters.score={rank: 2, targets: [attn1]}"],
            r"'attn1' is a Attention, .* name linear or conv",
        ),
        (["adapters.generator={rank: 4}", "model.generator=LORA"], "with rank 2, alpha 8, but adapters.generator says"),
        (["adapters.generator={rank: 2, alpha: 4}", "model.generator=LORA"], "alpha 8, but .* rank 2, alpha 4 for"),
        (
            ["adapters.generator={rank: 2, alpha: 8, targets: [to_q]}", "model.generator=LORA"],
            "adapts 32 modules .* 8 for 8",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_sentence_of_check(settings, sentence, folders, tmp_path, prompts):
    folder = folders("sd15")
    frame, network = adapted("sd15", folder)
    start = files_of(network.network, frame, tmp_path / "start", "diffusers")
    settings = [setting.replace("LORA", str(start)) for setting in settings]
    with pytest.raises(UserError, match=sentence):
        check(config_of("sd15", tmp_path, folder, prompts, *settings))


def test_a_file_of_peft_has_its_configuration_beside_it(folders, tmp_path, prompts):
    folder = folders("pixart")
    frame, network = adapted("pixart", folder)
    start = files_of(network.network, frame, tmp_path / "start", "diffusers")
    alone = tmp_path / "alone.safetensors"
    shutil.copy(start / "adapter_model.safetensors", alone)
    with pytest.raises(UserError, match=r"PixArtAlphaPipeline has no loader .* give a folder of PEFT's"):
        check(config_of("pixart", tmp_path, folder, prompts, f"model.generator={alone}"))


@pytest.mark.parametrize(
    ("theirs", "ours", "kind"),
    [("sdxl", "sd15", "file"), ("sdxl", "sd15", "kohya"), ("sd15", "sdxl", "diffusers"), ("sd3", "flux", "file"),
     ("flux", "sd3", "diffusers"), ("flux", "sana", "file"), ("sd15", "sd3", "kohya"), ("pixart", "sd15", "diffusers")],
)  # fmt: skip
def test_a_lora_of_another_model_is_one_sentence_and_no_other(theirs, ours, kind, folders, tmp_path, prompts, capfd):
    """Whatever the libraries say of it: many lines, that would stand before ours."""
    frame, network = adapted(theirs, folders(theirs))
    start = files_of(network.network, frame, tmp_path / "start", kind)
    config = config_of(ours, tmp_path, folders(ours), prompts, f"model.generator={start}")
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as warned, pytest.raises(UserError, match="on this model") as said:
        warnings.simplefilter("always")
        check(config)
    assert not warned and capfd.readouterr() == ("", "") and "\n" not in str(said.value)
