"""LoRA in every family: fresh it changes nothing, off it is gone to the bit, and exported it gives the trainer's x0."""

import json
import shutil

import pytest
import torch
from family_worlds import CPU, FLOW, OBLONG, size
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dipp_ray.alignment.questions import generate
from dipp_ray.config import AdapterSection
from dipp_ray.errors import UserError
from dipp_ray.models.adapter_files import is_adapter, save_adapter
from dipp_ray.models.adapters import adapter_off, add_adapter, merge_adapter, trained_weights
from dipp_ray.models.export import adapter_error, export_error, write_adapter, write_pipeline
from dipp_ray.models.pipeline import load_denoiser, one_step_of, read_frame
from dipp_ray.models.start import starting_network
from dipp_ray.models.text import TextEncoder
from dipp_ray.training.checks import check
from settings import tiny_config
from tiny import prompt_file
from tiny_families import PROMPTS, save_family

NAMES = [
    "sd15",
    "sd21v",
    "sdxl",
    "pixart",
    "pixart1024",
    "pixartsigma",
    "sd3",
    "sana",
    "flux",
    "qwenimage",
    "zimage",
    "sanasprint",
]
# An alpha that is not the rank, so that one that is lost would be seen.
LORA = AdapterSection(rank=2, alpha=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a family, made when it is first asked for."""
    base = tmp_path_factory.mktemp("adapters")

    def folder_of(name):
        return base / name if (base / name).exists() else save_family(name, base / name)

    return folder_of


def adapted(name, folder, settings=LORA, moved=0.1, resolution=OBLONG):
    """The family's frame, and its network with an adapter that has moved."""
    frame = read_frame(folder, resolution=resolution and size(name, resolution))
    network = load_denoiser(folder, "fp32", frame=frame)
    add_adapter(network.network, settings, frame.adapter_targets, 7, "generator")
    move(network, moved)
    return frame, network


@torch.no_grad()
def move(network, by):
    generator = torch.Generator().manual_seed(3)
    for name, parameter in trained_weights(network):
        if ".lora_B." in name:
            parameter.copy_(by * torch.randn(parameter.shape, generator=generator))


def x0_of(network, frame, folder, one_step, z):
    with torch.no_grad():
        return generate(network, one_step, z, TextEncoder(folder, CPU, frame=frame)(PROMPTS))


def noise(frame):
    return torch.randn(len(PROMPTS), *frame.latent_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_exported_merged_and_alone_and_plain_diffusers_gives_the_trainers_x0(name, folders, tmp_path):
    folder = folders(name)
    frame, network = adapted(name, folder)
    # Frozen as an adapter's network is: torch folds a product in another order where a weight asks for gradients.
    z, base = noise(frame), load_denoiser(folder, "fp32", frame=frame).requires_grad_(False)
    for convention in ("unit",) if name in FLOW else ("unit", "sigma"):
        one_step = one_step_of(frame, 1000 if name in FLOW else 440, convention)
        x0 = x0_of(network, frame, folder, one_step, z)
        without = x0_of(base, frame, folder, one_step, z)
        assert (x0 - without).abs().max() > 1e-3 * x0.abs().max(), "the adapter is felt"
        with adapter_off(network):
            assert torch.equal(x0_of(network, frame, folder, one_step, z), without)
        assert torch.equal(x0_of(network, frame, folder, one_step, z), x0)
        out = write_adapter(frame, network.network, one_step, tmp_path / f"adapter-{convention}")
        plain = load_denoiser(folder, "fp32", frame=frame).network
        assert adapter_error(out, plain, PROMPTS, z, x0.numpy(), frame) < 1e-5
    merge_adapter(network.network)
    write_pipeline(frame, network.network, one_step, tmp_path / "merged")
    assert export_error(tmp_path / "merged", PROMPTS, z, x0.numpy()) < 1e-4


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"pixart1024", "flux", "zimage", "sana", "sanasprint"}))
def test_it_is_compared_at_the_size_that_the_folder_is_made_for(name, folders, tmp_path):
    """Where no resolution is set the pipeline's call finds its own, and asks the network for it.

    The tiny folders of SANA are made for a size that their own call refuses.
    """
    folder = folders(name)
    frame, network = adapted(name, folder, resolution=None)
    one_step, z = one_step_of(frame, 1000 if name in FLOW else 440, "unit"), noise(frame)
    x0 = x0_of(network, frame, folder, one_step, z)
    out = write_adapter(frame, network.network, one_step, tmp_path / "adapter")
    plain = load_denoiser(folder, "fp32", frame=frame).network
    assert adapter_error(out, plain, PROMPTS, z, x0.numpy(), frame) < 1e-5


@pytest.mark.parametrize("name", ["sdxl", "pixart", "sd3"])
def test_an_alpha_that_is_lost_on_reload_is_seen(name, folders, tmp_path):
    folder = folders(name)
    frame, network = adapted(name, folder)
    one_step = one_step_of(frame, 1000 if name in FLOW else 440, "unit")
    z = noise(frame)
    x0 = x0_of(network, frame, folder, one_step, z)
    out = write_adapter(frame, network.network, one_step, tmp_path / "adapter")
    if name == "pixart":
        config = json.loads((out / "adapter_config.json").read_text())
        (out / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["r"]}))
    else:
        (file,) = out.glob("*.safetensors")
        save_file(load_file(file), file, {"format": "pt"})
    plain = load_denoiser(folder, "fp32", frame=frame).network
    assert adapter_error(out, plain, PROMPTS, z, x0.numpy(), frame) > 1e-3


def test_a_fresh_one_changes_nothing_and_is_drawn_by_the_seed_and_the_role(folders):
    folder = folders("sd15")
    frame, first = adapted("sd15", folder, moved=0)
    one_step, z = one_step_of(frame, 440, "unit"), noise(frame)
    base = load_denoiser(folder, "fp32", frame=frame).requires_grad_(False)
    assert torch.equal(x0_of(first, frame, folder, one_step, z), x0_of(base, frame, folder, one_step, z))
    drawn = []
    for seed, group in ((7, "generator"), (7, "generator"), (8, "generator"), (7, "score")):
        torch.manual_seed(len(drawn))
        network = load_denoiser(folder, "fp32", frame=frame).network
        add_adapter(network, LORA, frame.adapter_targets, seed, group)
        drawn.append(torch.cat([p.flatten() for name, p in trained_weights(network) if ".lora_A." in name]))
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(drawn[0], other) for other in drawn[2:])
    assert drawn[0].std().item() == pytest.approx(1 / LORA.rank, rel=0.1)
    assert len(set(drawn[0].tolist())) > 0.9 * len(drawn[0]), "no two matrices are the same"
    trained = [name for name, _ in trained_weights(first)]
    assert trained and all(".lora_" in name for name in trained)


# -- starting points ---------------------------------------------------------------------------------------------------


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
        (["adapters.score={rank: 2, targets: [norm1]}"], r"adapters.score.targets: .*not supported"),
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


def test_an_exported_file_names_its_alpha(folders, tmp_path):
    frame, network = adapted("sdxl", folders("sdxl"))
    (tmp_path / "out").mkdir()
    save_adapter(network.network, frame, tmp_path / "out")
    with safe_open(tmp_path / "out" / "pytorch_lora_weights.safetensors", "pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (said["unet.lora_alpha"], said["unet.r"]) == (8, 2)
