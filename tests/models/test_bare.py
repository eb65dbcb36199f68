"""A starting generator that is a network alone, as DMD2's UNets are published: read by the teacher's frame."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dipp_ray.errors import UserError
from dipp_ray.models.pipeline import load_denoiser, read_frame
from dipp_ray.training.checks import check
from dipp_ray.training.plain import plain_loop
from settings import tiny_config
from tiny import prompt_file
from tiny_families import save_family

UNIT = "model.input=unit"  # nothing says how a stranger's network is read
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare")
    return save_family("sdxl", folder / "teacher"), save_family("sdxl", folder / "other", seed=1)


def as_file(weights, place):
    shutil.copyfile(weights, place / "sdxl_1step_unet.safetensors")
    return place / "sdxl_1step_unet.safetensors"


def as_bin(weights, place):
    torch.save(load_file(weights), place / "sdxl_1step_unet_fp16.bin")
    return place / "sdxl_1step_unet_fp16.bin"


def as_folder(weights, place):
    shutil.copyfile(weights, place / FILE.replace(".safetensors", ".fp16.safetensors"))
    return place


def as_part(weights, place):
    (place / "unet").mkdir()
    return as_folder(weights, place / "unet").parent


def as_training_folder(weights, place):
    torch.save(load_file(weights), place / "pytorch_model.bin")
    return place


def wrapped(weights, place):
    save_file({f"module.model.{name}": value for name, value in load_file(weights).items()}, place / "unet.safetensors")
    return place / "unet.safetensors"


@pytest.mark.parametrize("dress", [as_file, as_bin, as_folder, as_part, as_training_folder, wrapped])
def test_a_network_alone_is_checked_and_trained_from(folders, tmp_path, dress):
    teacher, other = folders
    (tmp_path / "start").mkdir()
    start = dress(other / "unet" / FILE, tmp_path / "start")
    config = tiny_config(
        tmp_path, teacher, prompt_file(tmp_path / "prompts.parquet"), f"model.generator={start}", UNIT,
        "data.batch_size=2", "data.micro_batches=1", "objective.reward_scale=0",
    )  # fmt: skip
    loop = plain_loop(config, check(config))
    theirs = load_denoiser(other, "fp32").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in loop.generator.network.state_dict().items())
    assert all(torch.tensor(value).isfinite() for value in loop.step(0).values())


def test_another_network_is_refused_by_name(folders, tmp_path):
    teacher, _ = folders
    weights = load_file(teacher / "unet" / FILE)
    name = sorted(weights)[5]
    start = tmp_path / "unet.safetensors"
    for changed, sentence in (
        ({key: value for key, value in weights.items() if key != name}, f"lack {name}"),
        (
            weights | {"model.diffusion_model.in.weight": torch.zeros(1)},
            "an unexpected model.diffusion_model.in.weight",
        ),
        (weights | {name: torch.zeros(3, 3, 3)}, f"in another shape {name}"),
        ({f"model.{key}" if key == name else key: value for key, value in weights.items()}, f"lack {name}"),
    ):
        save_file(changed, start)
        config = tiny_config(tmp_path, teacher, prompt_file(tmp_path / "p.parquet"), f"model.generator={start}", UNIT)
        with pytest.raises(UserError, match=sentence):
            check(config)
        with pytest.raises(UserError, match=sentence):
            load_denoiser(start, "fp32", frame=read_frame(teacher))


def test_a_file_of_another_kind_is_refused(folders, tmp_path):
    (tmp_path / "unet.ckpt").write_bytes(b"pickle")
    config = tiny_config(
        tmp_path,
        folders[0],
        prompt_file(tmp_path / "p.parquet"),
        f"model.generator={tmp_path / 'unet.ckpt'}",
        UNIT,
    )
    with pytest.raises(UserError, match="no file of weights that is known here"):
        check(config)
