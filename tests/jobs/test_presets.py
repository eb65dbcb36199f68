"""Every preset in jobs/ is a valid configuration, and its two halves are accepted by the script they are for."""

from pathlib import Path

import pytest

from dipp_ray.config import RunConfig, load_config
from dipp_ray.preferences.config import FitConfig
from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.settings import load_settings

OTHERS = {"rewards": ServiceConfig, "fit_reward": FitConfig}
PRESETS = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))


def test_the_large_models_have_one():
    assert {"sd15", "pixart", "sdxl"} <= {path.stem for path in PRESETS}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_it_is_valid(path):
    load_settings(path, [], OTHERS.get(path.stem, RunConfig))


@pytest.mark.parametrize("name", ["sd15", "pixart", "sdxl"])
def test_no_preset_keeps_many_graphs_on_a_gpu(name):
    path = next(path for path in PRESETS if path.stem == name)
    assert load_config(path).roles.generator.recompute


@pytest.mark.parametrize("name", ["sd15", "pixart", "sdxl"])
def test_it_aligns_and_distils(script, name):
    path = next(path for path in PRESETS if path.stem == name)
    config = load_config(path)
    assert script("align").refuse(config) is None
    assert script("distil").refuse(load_config(path, ["objective.reward_scale=0"])) is None
    assert config.roles.generator.gpus >= 1 and config.roles.generator.accelerator
    assert not Path(config.run.folder).is_relative_to(".")  # absolute: a job's own folder is deleted with it
