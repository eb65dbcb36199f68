"""The stages of the demo: what each needs is made by those before it, and the runs stand on the parts."""

import json
import os
import subprocess
import sys

import pytest
from miniature_worlds import TINY, checksums, silent

from dipp_ray.miniature import runs
from dipp_ray.miniature.build import Miniature, MiniatureRecipe, build_miniature, stages
from dipp_ray.miniature.demo import STAGES
from dipp_ray.preferences.config import FitSettings

PARTS = {"teacher": ("digits", "autoencoder", "teacher"), "gold": ("gold", "reward_base"), "reward": ("pairs",)}


def test_parts_built_by_several_are_those_that_one_builds(world, tmp_path):
    for part in ("gold", "teacher", "reward"):  # the two that wait for nothing, in either order
        build_miniature(tmp_path, silent, TINY, only=PARTS[part])
    assert checksums(tmp_path) == checksums(world.root)


def test_the_stages_build_every_part_once(tmp_path):
    names = [folder.name for folder, _, _ in stages(Miniature.at(tmp_path), MiniatureRecipe(), silent)]
    assert sorted(names) == sorted(part for parts in PARTS.values() for part in parts)
    known: set[str] = set()
    for name, (_, after) in STAGES.items():  # in an order in which they could run one by one
        assert known.issuperset(after)
        known.add(name)


def test_the_same_bits_come_out_whatever_the_number_of_threads(world, tmp_path):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        build_miniature(tmp_path, silent, TINY, only=PARTS["teacher"])
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    whole = checksums(world.root)
    assert checksums(tmp_path).items() <= whole.items()


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_the_command_has_torchs_threads_sleep_before_torch_is_loaded(given):
    code = """
import os, sys
from dipp_ray import cli
try:
    cli.main(["--version"])
except SystemExit:
    pass
assert "torch" not in sys.modules
print(os.environ["OMP_WAIT_POLICY"])
"""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == (given or "PASSIVE")


@pytest.mark.slow
def test_the_distillation_needs_no_reward_and_the_alignment_measures_both(ray_session, world, tmp_path, monkeypatch):
    def short(config, steps):
        sizes = {"samples": 36, "teacher_steps": 2}
        return config.model_copy(
            update={
                "run": config.run.model_copy(update={"steps": steps}),
                "evaluation": config.evaluation.model_copy(update=sizes),
            }
        )

    distil = short(runs.distil_preset(world, tmp_path), 2)
    assert not runs.reward_folder(world).exists()
    runs.finish(distil, silent, evaluates=False)
    monkeypatch.setattr(runs, "FIT", FitSettings(steps=2))
    runs.fitted_reward(world, silent)
    align = short(runs.align_preset(world, tmp_path, distil, []), 2)
    runs.finish(align, silent)
    evaluation = json.loads((tmp_path / "align" / "evaluation.json").read_text())
    assert list(evaluation["models"]) == ["base", "aligned", "teacher"]
    assert all({"preference", "gold"} <= values.keys() for values in evaluation["models"].values())
    assert (tmp_path / "distil" / "report.html").is_file()
