"""The resolution is the folder's, or the configured one: latents, conditions and the exported call follow it."""

import json
import shutil

import pytest
import torch

from dipp_ray.errors import UserError
from dipp_ray.evaluation.sample_command import sample
from dipp_ray.evaluation.sampling import sample_images
from dipp_ray.models.export import export_pipeline
from dipp_ray.models.pipeline import load_denoiser, one_step_of, read_frame
from dipp_ray.models.plain_pipeline import load_pipeline
from tiny_families import PROMPTS, save_family


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resolution")
    return {name: save_family(name, folder / name) for name in ("sd15", "pixart", "sd3", "sana", "flux")}


def with_network(folder, out, leave_out=(), **settings):
    """A copy of the folder with other settings of its network."""
    copy = shutil.copytree(folder, out)
    path = next(copy.glob("unet/config.json"), copy / "transformer" / "config.json")
    given = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in given.items() if key not in leave_out}))
    return copy


@pytest.mark.parametrize(
    ("name", "resolution", "unit"),
    [
        ("sd15", (16, 20), 8),  # the pipeline's own rule; two pixels a latent
        ("pixart", (18, 16), 8),
        ("sd3", (16, 18), 4),  # two pixels a latent, two latents a patch
        ("sana", (32, 48), 32),
        ("flux", (16, 18), 4),
    ],
)
def test_a_resolution_that_does_not_divide_is_one_sentence(folders, name, resolution, unit):
    with pytest.raises(UserError, match=rf"model\.resolution=.* must be multiples of {unit} pixels"):
        read_frame(folders[name], resolution=resolution)


def test_a_resolution_beyond_the_known_positions_is_one_sentence(folders):
    assert read_frame(folders["sd3"], resolution=(64, 16)).latent_shape == (16, 32, 8)
    with pytest.raises(UserError, match="knows positions up to 64 pixels a side"):
        read_frame(folders["sd3"], resolution=(80, 16))


def test_latents_follow(folders):
    assert read_frame(folders["pixart"]).latent_shape == (4, 8, 8)
    assert read_frame(folders["pixart"], resolution=(16, 48)).latent_shape == (4, 8, 24)
    assert read_frame(folders["flux"]).latent_shape == (16, 128, 128)  # as its pipeline has it: 1024 pixels published


def test_a_size_that_is_a_list_null_or_absent(folders, tmp_path):
    pair = with_network(folders["sd15"], tmp_path / "pair", sample_size=[8, 12])
    assert read_frame(pair).latent_shape == (4, 8, 12)
    nothing = with_network(folders["sd15"], tmp_path / "nothing", sample_size=None)
    with pytest.raises(UserError, match=r"no sample_size: set model\.resolution"):
        read_frame(nothing)
    assert read_frame(nothing, resolution=(16, 24)).latent_shape == (4, 8, 12)
    absent = with_network(folders["pixart"], tmp_path / "absent", leave_out=("sample_size", "in_channels"))
    assert read_frame(absent).latent_shape == (4, 128, 128)  # the class's own default


def test_an_export_is_sampled_at_the_resolution_that_it_was_trained_at(folders, tmp_path):
    frame = read_frame(folders["pixart"], resolution=(32, 48))
    weights = load_denoiser(folders["pixart"], "fp32").network.state_dict()
    out = export_pipeline(frame, weights, one_step_of(frame, 440, "unit"), tmp_path / "out")
    plain = load_pipeline(out)
    assert plain.arguments()["height"] == 32 and plain.arguments()["width"] == 48
    assert sample_images(plain, PROMPTS, 0, 1, 0.0, 2).shape == (3, 3, 32, 48)
    assert sample(out, ["a red cat"], tmp_path / "cat.png")[0].exists()
    assert plain.pipeline("a red cat", output_type="pt", **plain.arguments()).images.shape == (1, 3, 32, 48)
    with torch.no_grad():  # another one that is asked for goes first
        other = load_pipeline(out, frame=read_frame(out, resolution=(16, 16)))
        assert sample_images(other, PROMPTS[:1], 0, 1, 0.0, 1).shape == (1, 3, 16, 16)
