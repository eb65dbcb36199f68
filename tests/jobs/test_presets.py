"""Every preset in jobs/ is a valid configuration, and its two halves are accepted by the script they are for."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dipp_ray.config import RunConfig, load_config
from dipp_ray.models.reading import settled
from dipp_ray.preferences.config import FitConfig
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.settings import load_settings
from dipp_ray.training.checks import check
from tiny import prompt_file
from tiny_families import save_family

OTHERS = {"rewards": ServiceConfig, "fit_reward": FitConfig}
# Each with the tiny pipeline of its kind.
LARGE = {"sd15": "sd15", "pixart": "pixart", "sdxl": "sdxl", "sd3": "sd3", "sana": "sana", "flux": "flux"}
LARGE |= {"sdxl_dmd2": "sdxl", "sd_turbo": "sd15"}
# Each with its generator as it is published: what is copied to that name, and what its name says.
PUBLISHED = {
    "sdxl_dmd2": ("unet/diffusion_pytorch_model.safetensors", "dmd2_sdxl_1step_unet_fp16.bin", 399, "unit"),
    "sd_turbo": (".", "stabilityai/sd-turbo", 999, "sigma"),
}
LAID_OVER = ("lora", "elastic")
PRESETS = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))


def test_the_large_models_have_one():
    assert set(LARGE) <= {path.stem for path in PRESETS}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_it_is_valid(path):
    if path.stem in LAID_OVER:
        load_settings(path_of("sdxl"), [str(path)], RunConfig)
    else:
        load_settings(path, [], OTHERS.get(path.stem, RunConfig))


@pytest.mark.parametrize("name", LARGE)
def test_no_preset_keeps_many_graphs_on_a_gpu(name):
    path = path_of(name)
    assert load_config(path).roles.generator.recompute


@pytest.mark.parametrize("name", LARGE)
def test_it_aligns_and_distils(script, name):
    path = path_of(name)
    config = load_config(path)
    assert script("align").refuse(config) is None
    assert script("distil").refuse(load_config(path, ["objective.reward_scale=0"])) is None
    assert config.roles.generator.gpus >= 1 and config.roles.generator.accelerator
    assert not Path(config.run.folder).is_relative_to(".")  # absolute: a job's own folder is deleted with it


def in_small(name, tmp_path):
    """Settings that put a tiny teacher of the preset's class in the place of the real one."""
    teacher, prompts = save_family(LARGE[name], tmp_path / "teacher"), prompt_file(tmp_path / "prompts.parquet")
    settings = [f"model.teacher={teacher}", f"data.prompts={prompts}", f"run.folder={tmp_path}"]
    return [*settings, "reward.terms=[{name: bright, model: 'tiny_models:Brightness'}]"]


@pytest.mark.parametrize("over", [[], ["LORA"]], ids=["whole", "lora"])
@pytest.mark.parametrize("aim", [[], ["objective.reward_scale=0"]], ids=["aligns", "distils"])
@pytest.mark.parametrize("name", [name for name in LARGE if name not in PUBLISHED])
def test_it_is_checked_with_a_small_teacher_of_its_class(tmp_path, name, aim, over):
    over = [str(path_of("lora"))] * len(over)
    config = load_config(path_of(name), [*over, *in_small(name, tmp_path), *aim])
    assert (config.adapters.score is not None) == bool(over)
    check(config)


@pytest.mark.parametrize("over", [[], ["LORA"]], ids=["whole", "lora"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_generator_is_aligned_further(tmp_path, name, over, script):
    part, called, t_star, reads = PUBLISHED[name]
    given = load_config(path_of(name))
    assert given.model.generator.endswith(called) and given.model.t_star is None
    assert script("align").refuse(given) is None
    settings = in_small(name, tmp_path)
    generator, source = tmp_path / called, tmp_path / "teacher" / part
    generator.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, generator)
    else:
        torch.save(load_file(source), generator)
    over = [str(path_of("lora"))] * len(over)
    config = load_config(path_of(name), [*over, *settings, f"model.generator={generator}"])
    check(config)
    model = settled(config).model
    assert (model.t_star, model.input, model.prediction) == (t_star, reads, "teacher")
    assert config.init.score_warmup_steps > 0, "the teacher does not describe it"


def path_of(name):
    return next(path for path in PRESETS if path.stem == name)


@pytest.mark.parametrize("name", LARGE)
def test_no_preset_clips_every_update(name):
    """A sum over a latent's elements is thousands of times their mean: a clip made for the mean would always act."""
    config = load_config(path_of(name))
    assert config.objective.reduction == "mean" or config.generator_optim.grad_clip == 0
