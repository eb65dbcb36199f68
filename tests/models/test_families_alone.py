"""A family is one file: its classes' names stand nowhere else in the package, and each family lists its own."""

import re
from pathlib import Path

import pytest

import dipp_ray
from dipp_ray.errors import UserError
from dipp_ray.models.export import write_one_step
from dipp_ray.models.families import FAMILIES
from dipp_ray.models.pipeline import one_step_of, read_frame
from tiny_families import save_family

PACKAGE = Path(dipp_ray.__file__).parent
# The miniature is a pipeline of one family, made and trained here.
ALONE = (PACKAGE / "models" / "families", PACKAGE / "miniature")


def test_no_class_of_a_family_is_named_outside_its_file():
    names = {name for family in FAMILIES for name in (*family.pipelines, *family.networks)}
    assert len({name for family in FAMILIES for name in family.pipelines}) == len(FAMILIES)
    word = re.compile("|".join(sorted(names)))
    for path in PACKAGE.rglob("*.py"):
        if not any(folder in path.parents for folder in ALONE):
            assert not word.search(path.read_text()), f"{path.relative_to(PACKAGE)} names a family's class"


@pytest.mark.parametrize(("name", "refused"), [("pixart", True), ("schnell", True), ("flux", False)])
def test_a_scale_is_told_only_to_a_network_that_reads_one(tmp_path, name, refused):
    folder = save_family(name, tmp_path / name)
    if refused:
        with pytest.raises(UserError, match="reads no guidance scale"):
            read_frame(folder, embedded_guidance=2.0)
    else:
        assert read_frame(folder).guidance_arguments(None) == {"guidance_scale": 3.5}
        frame = read_frame(folder, embedded_guidance=2.0)
        assert frame.guidance_arguments(1) == {"guidance_scale": 2.0}
        assert frame.guidance_arguments(4.5)["true_cfg_scale"] == 4.5


@pytest.mark.parametrize(
    ("name", "told"), [("sd15", {"guidance_scale": 4.5}), ("zimage", {"guidance_scale": 3.5})], ids=["sd15", "zimage"]
)
def test_a_pipeline_is_guided_in_its_own_convention(tmp_path, name, told):
    frame = read_frame(save_family(name, tmp_path / name))
    assert frame.guidance_arguments(4.5) == told and frame.guidance_arguments(None) == {"guidance_scale": 0.0}


def test_an_export_goes_on_being_told_the_scale_that_it_was_trained_with(tmp_path):
    folder = save_family("flux", tmp_path / "flux")
    frame = read_frame(folder, embedded_guidance=2.0)
    write_one_step(frame, one_step_of(frame, 1000, "sigma"), folder)
    assert read_frame(folder).guidance_arguments(None) == {"guidance_scale": 2.0}
    assert read_frame(folder, embedded_guidance=3.0).guidance_arguments(None) == {"guidance_scale": 3.0}
