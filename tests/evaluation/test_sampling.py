import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from dipp_ray.alignment.questions import generate
from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.errors import UserError
from dipp_ray.evaluation.sample_command import sample
from dipp_ray.evaluation.sampling import sample_images
from dipp_ray.models.export import export_pipeline
from dipp_ray.models.latents import LatentDecoder
from dipp_ray.models.pipeline import load_denoiser, one_step_of, one_step_of_folder, read_frame
from dipp_ray.models.plain_pipeline import load_pipeline
from dipp_ray.models.text import TextEncoder

CALL = {"num_inference_steps": 1, "guidance_scale": 0.0, "use_resolution_binning": False, "clean_caption": False}


def one(files):
    (file,) = files
    return file


def test_the_file_is_what_plain_diffusers_gives(tiny_world, tmp_path):
    out = one(sample(tiny_world / "aligned", ["a bold two"], tmp_path / "two.png", seed=3))
    plain = DiffusionPipeline.from_pretrained(tiny_world / "aligned", low_cpu_mem_usage=False)
    image = plain("a bold two", generator=torch.Generator().manual_seed(3), **CALL).images[0]
    shown = np.asarray(Image.open(out))
    assert shown.shape == (256, 256, 3)
    np.testing.assert_array_equal(shown, np.asarray(image).repeat(32, 0).repeat(32, 1))
    other = one(sample(tiny_world / "aligned", ["a bold two"], tmp_path / "other.png", seed=4))
    assert other.read_bytes() != out.read_bytes()


def test_what_diffusers_itself_saves_is_sampled_alike(tiny_world, tmp_path):
    """save_pretrained of the loaded folder keeps no one_step.json: what it holds stands in the scheduler too."""
    DiffusionPipeline.from_pretrained(tiny_world / "aligned").save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "one_step.json").exists()
    assert one_step_of_folder(tmp_path / "saved") == {"t_star": 440, "input": "sigma"}
    first, again = (
        one(sample(folder, ["a bold two"], tmp_path / f"{folder.name}.png", seed=3)).read_bytes()
        for folder in (tiny_world / "aligned", tmp_path / "saved")
    )
    assert first == again
    DiffusionPipeline.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "twice")
    assert one_step_of_folder(tmp_path / "twice") == {"t_star": 440, "input": "sigma"}
    latents = [
        load_pipeline(tmp_path / name).latents(["a"], torch.ones(1, 1, 8, 8), steps=4) for name in ("saved", "twice")
    ]
    assert torch.equal(*latents)


def test_resolution_and_guidance_are_kept_too(tiny_world, tmp_path):
    frame = replace(read_frame(tiny_world / "teacher", resolution=(16, 8)), embedded_guidance=3.5)
    out = exported(frame, tiny_world / "other", tmp_path / "out")
    expected = {"t_star": 440, "input": "unit", "resolution": [16, 8], "embedded_guidance": 3.5}
    assert one_step_of_folder(out) == expected == json.loads((out / "one_step.json").read_text())
    (out / "one_step.json").unlink()
    assert one_step_of_folder(out) == expected
    del expected["embedded_guidance"]  # which this network does not read
    assert one_step_of_folder(exported(replace(frame, embedded_guidance=None), tiny_world / "other", out)) == expected
    (out / "one_step.json").unlink()
    assert read_frame(out).resolution == (16, 8)


def exported(frame, weights_of, out):
    weights = load_denoiser(weights_of, "fp32").network.state_dict()
    return export_pipeline(frame, weights, one_step_of(frame, 440, "unit"), out)


def test_two_accounts_that_differ_are_refused(tiny_world, tmp_path):
    shutil.copytree(tiny_world / "aligned", tmp_path / "out")
    (tmp_path / "out" / "one_step.json").write_text('{"t_star": 439, "input": "sigma"}')
    with pytest.raises(UserError, match=r"one_step\.json says .*439.*its scheduler was made for .*440.*export it anew"):
        sample(tmp_path / "out", ["a"], tmp_path / "a.png")


def test_an_export_of_before_the_scheduler_held_it_is_sampled(tiny_world, tmp_path):
    shutil.copytree(tiny_world / "aligned", tmp_path / "out")
    path = tmp_path / "out" / "scheduler" / "scheduler_config.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "_one_step"})
    )
    assert one_step_of_folder(tmp_path / "out") == {"t_star": 440, "input": "sigma"}
    sample(tmp_path / "out", ["a"], tmp_path / "a.png")


def test_the_exported_scheduler_warns_of_nothing(tiny_world, capfd):
    DiffusionPipeline.from_pretrained(tiny_world / "aligned", low_cpu_mem_usage=False)
    assert "not expected" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("folder", "out", "sentence"),
    [
        ("missing", "a.png", "is no folder"),
        ("teacher", "a.png", r"no one_step\.json"),
        ("aligned", "nowhere/a.png", "there is no folder"),
        ("teacher/vae", "a.png", r"model_index\.json is missing"),
    ],
)
def test_a_wrong_folder_is_one_sentence(tiny_world, tmp_path, folder, out, sentence):
    with pytest.raises(UserError, match=sentence):
        sample(tiny_world / folder, ["a"], tmp_path / out)
    assert list(tmp_path.iterdir()) == []


def test_images_are_the_trainers_own(tiny_world):
    """The exported pipeline's images are the decoded x0 of the trainer, for the noises of the same keys."""
    prompts = ["a bold two", "a thin one", "a bold zero"]
    images = sample_images(load_pipeline(tiny_world / "aligned"), prompts, 7, 1, 0.0, batch=2)
    frame = read_frame(tiny_world / "teacher")
    network = load_denoiser(tiny_world / "other", "fp32")
    z = Draws(7, EVALUATION, 0, range(3)).normal("z", frame.latent_shape)
    with torch.no_grad():
        embeds = TextEncoder(tiny_world / "teacher", torch.device("cpu"))(prompts)
        x0 = generate(network, one_step_of(frame, 440, "sigma"), z, embeds)
        expected = LatentDecoder.from_folder(tiny_world / "teacher").decode(x0)
    assert images.shape == (3, 3, 8, 8)
    assert images.std() > 0.01
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    alone = sample_images(load_pipeline(tiny_world / "aligned"), prompts, 7, 1, 0.0, batch=3)
    torch.testing.assert_close(alone, images, atol=1e-5, rtol=0)


@pytest.fixture
def run(tiny_world, tmp_path):
    """A finished run's folder, around the exported pipeline."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    (tmp_path / "run" / "pipeline").symlink_to(tiny_world / "aligned")
    return tmp_path / "run"


def test_several_images_are_numbered_and_the_same_alone(tiny_world, run, tmp_path):
    prompts = ["a bold two", "a thin one"]
    files = sample(run, prompts, tmp_path / "many", seed=5, count=3, batch=4)
    assert files == [tmp_path / "many" / f"{i}.png" for i in range(6)] == sorted((tmp_path / "many").iterdir())
    for number, (prompt, seed) in enumerate((prompt, seed) for prompt in prompts for seed in (5, 6, 7)):
        alone = one(sample(tiny_world / "aligned", [prompt], tmp_path / "alone.png", seed=seed))
        shown, other = (np.asarray(Image.open(file)).astype(int) for file in (files[number], alone))
        assert abs(shown - other).max() <= 1, f"image {number}: a batch of another size may round otherwise"
    assert len({file.read_bytes() for file in files}) == 6


def test_ten_and_more_are_numbered_alike(run, tmp_path):
    files = sample(run, ["a thin one"], tmp_path / "ten", count=11)
    assert [files[0].name, files[1].name, files[-1].name] == ["00.png", "01.png", "10.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompts": ["a", " "]}, "the prompt is empty"),
        ({"prompts": []}, "the prompt is empty"),
        ({"prompts": ["a", "b"], "out": "two.png"}, "2 images do not go into the one file"),
        ({"prompts": ["a"], "device": "gpu"}, "--device gpu: torch has none here"),
        ({"prompts": ["a"], "device": "cuda:7"}, "--device cuda:7: torch has none here"),
    ],
)
def test_what_cannot_be_sampled_is_one_sentence(run, tmp_path, arguments, sentence):
    given = {"out": "out.png"} | arguments
    with pytest.raises(UserError, match=sentence):
        sample(run, out=tmp_path / given.pop("out"), **given)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
