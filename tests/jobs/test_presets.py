"""Every preset in jobs/ is a valid configuration, and its two halves are accepted by the script they are for."""

from pathlib import Path

import pytest

from dipp_ray.config import RunConfig, load_config
from dipp_ray.preferences.config import FitConfig
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.settings import load_settings
from dipp_ray.training.checks import check
from tiny import prompt_file
from tiny_families import save_family

OTHERS = {"rewards": ServiceConfig, "fit_reward": FitConfig}
# Each with the tiny pipeline of its kind.
LARGE = {"sd15": "sd15", "pixart": "pixart", "sdxl": "sdxl", "sd3": "sd3", "sana": "sana", "flux": "flux"}
PRESETS = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))


def test_the_large_models_have_one():
    assert set(LARGE) <= {path.stem for path in PRESETS}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_it_is_valid(path):
    load_settings(path, [], OTHERS.get(path.stem, RunConfig))


@pytest.mark.parametrize("name", LARGE)
def test_no_preset_keeps_many_graphs_on_a_gpu(name):
    path = next(path for path in PRESETS if path.stem == name)
    assert load_config(path).roles.generator.recompute


@pytest.mark.parametrize("name", LARGE)
def test_it_aligns_and_distils(script, name):
    path = next(path for path in PRESETS if path.stem == name)
    config = load_config(path)
    assert script("align").refuse(config) is None
    assert script("distil").refuse(load_config(path, ["objective.reward_scale=0"])) is None
    assert config.roles.generator.gpus >= 1 and config.roles.generator.accelerator
    assert not Path(config.run.folder).is_relative_to(".")  # absolute: a job's own folder is deleted with it


@pytest.mark.parametrize("name", LARGE)
def test_it_is_checked_with_a_small_teacher_of_its_class(tmp_path, name):
    path = next(path for path in PRESETS if path.stem == name)
    teacher, prompts = save_family(LARGE[name], tmp_path / "teacher"), prompt_file(tmp_path / "prompts.parquet")
    settings = [f"model.teacher={teacher}", f"data.prompts={prompts}", f"run.folder={tmp_path}"]
    check(load_config(path, [*settings, "reward.terms=[{name: bright, model: 'tiny_models:Brightness'}]"]))


@pytest.mark.parametrize("name", LARGE)
def test_no_preset_clips_every_update(name):
    """A sum over a latent's elements is thousands of times their mean: a clip made for the mean would always act."""
    config = load_config(next(path for path in PRESETS if path.stem == name))
    assert config.objective.reduction == "mean" or config.generator_optim.grad_clip == 0
