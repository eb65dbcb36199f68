"""What is read from a pipeline's folder without its weights: its kind of network, and its model card."""

import json
import shutil

import pytest

from dipp_ray.errors import UserError
from dipp_ray.models.card import write_card
from dipp_ray.models.pipeline import read_frame, same_network
from settings import tiny_config
from tiny import pixart_pipeline


@pytest.fixture
def folder(tmp_path):
    return pixart_pipeline(tmp_path / "pipeline")


def with_settings(folder, out, leave_out=(), **settings):
    copy = shutil.copytree(folder, out)
    path = copy / "transformer" / "config.json"
    given = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in given.items() if key not in leave_out}))
    return read_frame(copy)


def test_networks_are_the_same_in_every_setting(folder, tmp_path):
    with pytest.raises(UserError, match=r"num_layers=3, but that of the teacher .* num_layers=2"):
        same_network(read_frame(folder), with_settings(folder, tmp_path / "deep", num_layers=3))


def test_what_makes_no_network_another_one_is_not_compared(folder, tmp_path):
    same_network(read_frame(folder), with_settings(folder, tmp_path / "own", _name_or_path="x", _diffusers_version="0"))
    # A teacher of an early release leaves out what is the default; what is exported from it does not.
    old = with_settings(folder, tmp_path / "old", leave_out=("activation_fn", "attention_bias"))
    same_network(old, read_frame(folder))


def test_the_card_needs_no_weights(folder, tmp_path):
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    write_card(folder, read_frame(folder), tiny_config(tmp_path, folder, tmp_path / "prompts.parquet"), 20)
    text = (folder / "README.md").read_text()
    assert "num_inference_steps=1, guidance_scale=0, use_resolution_binning=False" in text
    above, call, warning, *_ = text.partition("---\n# tiny\n\n")[2].split("```")
    assert above == "" and call.startswith("python\n")  # the one right call comes first
    assert "`guidance_scale` is 0" in warning and "`use_resolution_binning=False`" in warning
    assert "More steps take longer" in warning
    assert "| guidance scale of the teacher | 1.5 |" in text


def test_the_card_of_a_distillation_speaks_of_no_reward(folder, tmp_path):
    for scale, said in (("2", True), ("0", False)):
        config = tiny_config(tmp_path, folder, tmp_path / "prompts.parquet", f"objective.reward_scale={scale}")
        write_card(folder, read_frame(folder), config, 20)
        text = (folder / "README.md").read_text()
        assert ("pushed\ntowards one reward" in text, "trained by Diff-Instruct++ " in text) == (said, said)
        assert ("none (distillation)" in text, "trained by Diff-Instruct " in text) == (not said, not said)


def test_the_card_names_the_guidance_of_a_teacher_that_is_shown_by_another(folder, tmp_path):
    config = tiny_config(tmp_path, folder, tmp_path / "prompts.parquet", "evaluation.teacher_guidance=3")
    write_card(folder, read_frame(folder), config, 20)
    row = "| guidance scale of the teacher | 1.5 (3 where it is shown beside) |"
    assert row in (folder / "README.md").read_text()
