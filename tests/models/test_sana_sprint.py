"""SANA-Sprint: what is not its own is refused, and what its network is told goes into the exported call."""

import json
import math

import pytest

from dipp_ray.errors import UserError
from dipp_ray.models.card import write_card
from dipp_ray.models.export import write_one_step
from dipp_ray.models.pipeline import read_frame
from dipp_ray.models.plain_pipeline import call_arguments
from dipp_ray.models.reading import one_step_of_model, settled
from dipp_ray.training.checks import check
from settings import tiny_config
from tiny import prompt_file
from tiny_families import save_family


@pytest.fixture
def folder(tmp_path):
    return save_family("sanasprint", tmp_path / "teacher")


def changed(folder, file, **settings):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_it_is_told_its_guidance(folder):
    assert read_frame(folder).guidance_arguments(None) == {"guidance_scale": 4.5}
    assert read_frame(folder, embedded_guidance=2.0).guidance_arguments(4.5) == {"guidance_scale": 2.0}
    assert call_arguments(read_frame(folder))["intermediate_timesteps"] is None


def test_another_scheduler_or_network_is_refused(folder):
    changed(folder, "scheduler/scheduler_config.json", prediction_type="epsilon")
    with pytest.raises(UserError, match="is not SANA-Sprint's, an SCMScheduler of trigflow"):
        read_frame(folder)
    changed(folder, "scheduler/scheduler_config.json", prediction_type="trigflow")
    changed(folder, "transformer/config.json", guidance_embeds=False)
    with pytest.raises(UserError, match="has no guidance_embeds, as SANA's own"):
        read_frame(folder)


def test_its_scheduler_is_no_other_familys(tmp_path, folder):
    sana = save_family("sana", tmp_path / "sana")
    scheduler = (folder / "scheduler" / "scheduler_config.json").read_text()
    (sana / "scheduler" / "scheduler_config.json").write_text(scheduler)
    with pytest.raises(UserError, match="SCMScheduler is none of flow matching"):
        read_frame(sana)


def test_two_branches_of_guidance_are_refused_and_the_card_shows_the_call(tmp_path, folder):
    prompts = prompt_file(tmp_path / "p.parquet")
    given = (tmp_path, folder, prompts, "model.t_star=null", "model.resolution=[32, 32]")
    with pytest.raises(UserError, match=r"has no null branch: set it to 1, and model\.embedded_guidance"):
        check(tiny_config(*given))
    config = settled(tiny_config(*given, "objective.guidance_scale=1"))
    check(config)
    frame = read_frame(folder, resolution=(32, 32))
    assert write_one_step(frame, one_step_of_model(frame, config.model), tmp_path) == "SCMScheduler"
    write_card(tmp_path, frame, config, 1)
    card = (tmp_path / "README.md").read_text()
    assert "More steps than one give wrong images" in card  # its scheduler goes back to noise between steps
    assert "guidance_scale=4.5, height=32, width=32" in card and "intermediate_timesteps=None" in card
    assert "t* = 1000, input convention `sigma`, output `flow_prediction`" in card


def test_one_step_from_the_end_of_the_angle_is_the_end_of_the_flow():
    """sin/(sin + cos) at its pipeline's 1.5708 is sigma = 1 to 4e-6, within what an export may differ by."""
    assert math.sin(1.5708) / (math.sin(1.5708) + math.cos(1.5708)) == pytest.approx(1, abs=4e-6)
