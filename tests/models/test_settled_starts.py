"""What is settled of a generator's reading: by what was written, an export's record, a name; and what a run records."""

import json
from contextlib import nullcontext

import pytest
import torch
from start_worlds import lay

from dipp_ray.diffusion.noise import Draws
from dipp_ray.errors import UserError
from dipp_ray.models.export import export_pipeline
from dipp_ray.models.pipeline import load_denoiser, one_step_of, read_frame
from dipp_ray.models.published import published
from dipp_ray.models.reading import settled
from dipp_ray.roles.trained import TrainedRank
from dipp_ray.training.checks import check
from dipp_ray.training.export_command import recorded
from dipp_ray.training.plain import plain_loop
from dipp_ray.training.train import train
from dipp_ray.training.trajectory import difference, trajectory


def read(run):
    model = settled(run).model
    return model.t_star, model.input, model.prediction


def test_what_is_written_wins_over_a_name(pairs, config, tmp_path):
    place = lay(tmp_path / "sdxl_lightning_1step_unet_x0.safetensors", pairs("sdxl")[1], "unet")
    assert read(config("sdxl", place)) == (999, "sigma", "sample")
    assert read(config("sdxl", place, "model.t_star=500")) == (500, "sigma", "sample")
    assert read(config("sdxl", place, "model.input=unit")) == (999, "unit", "sample")
    assert read(config("sdxl", place, "model.prediction=v_prediction")) == (999, "sigma", "v_prediction")
    assert read(config("sdxl", place, "model.prediction=teacher")) == (999, "sigma", "teacher")
    # What means the same as the teacher's output is called so, whoever said it.
    assert read(config("sdxl", place, "model.prediction=epsilon")) == (999, "sigma", "teacher")


def test_a_start_from_the_teacher(config):
    assert read(config("sd15", None, "model.t_star=625")) == (625, "sigma", "teacher")
    assert read(config("sd3", None)) == (1000, "sigma", "teacher")
    assert read(config("sd15", None, "model.prediction=flow_prediction")) == (1000, "sigma", "flow_prediction")
    with pytest.raises(UserError, match=r"model\.t_star is required where the generator starts as the teacher"):
        settled(config("sd15", None))


@pytest.mark.parametrize(
    ("family", "overrides", "sentence"),
    [
        ("sd3", ["model.prediction=epsilon"], "predicts the flow too"),
        ("sd3", ["model.prediction=negative_flow"], "predicts the flow too"),
        ("sd15", ["model.prediction=negative_flow", "model.t_star=999"], r"set model\.t_star=1000"),
        ("sd15", ["model.prediction=sample", "model.t_star=1000"], "choose 1 to 999"),
    ],
)
def test_what_cannot_be_read_or_exported_is_refused(config, family, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        check(config(family, None, *overrides))


@pytest.mark.parametrize(
    ("place", "family", "sentence"),
    [
        ("somebody/unet.safetensors", "sdxl", r"says how it is read: give model\.t_star and model\.input"),
        ("dmd2_sdxl_4step_unet_fp16.safetensors", "sdxl", "give model.t_star=999"),
        ("dmd2_sdxl_4step_lora.safetensors", "sdxl", "give model.t_star=999"),
        ("dmd2_sdxl_1step_unet.bin", "sd15", "a generator of StableDiffusionXLPipeline, but the teacher"),
        ("stabilityai/sd-turbo", "sdxl", "a generator of StableDiffusionPipeline, but the teacher"),
    ],
)
def test_a_generator_that_is_not_known_or_of_another_teacher_is_one_sentence(
    pairs, config, tmp_path, place, family, sentence
):
    run = config(family, lay(tmp_path / place, pairs("sdxl")[1], "unet"))
    with pytest.raises(UserError, match=sentence) as error:
        check(run)
    assert "\n" not in str(error.value)


def test_what_cannot_be_known_can_be_given(pairs, config, tmp_path):
    place = lay(tmp_path / "dmd2_sdxl_4step_unet_fp16.safetensors", pairs("sdxl")[1], "unet")
    run = config("sdxl", place, "model.t_star=999", "model.input=unit")
    check(run)
    assert read(run) == (999, "unit", "teacher")


def test_turbo_of_another_sample_size_has_the_same_network(pairs, config, tmp_path):
    """SDXL-Turbo's unet is of 512 pixels, its teacher's of 1024: of a UNet that is no difference."""
    place = lay(tmp_path / "stabilityai" / "sdxl-turbo", pairs("sdxl")[1], "unet")
    path = place / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 4}))
    check(config("sdxl", place))


# -- exported pairs, and what is recorded ----------------------------------------------------------------------------


@pytest.fixture
def export(pairs, tmp_path):
    def of(family, *reading):
        frame = read_frame(pairs(family)[0])
        weights = load_denoiser(pairs(family)[1], "fp32", frame=frame).network.state_dict()
        return export_pipeline(frame, weights, one_step_of(frame, *reading), tmp_path / "pipeline")

    return of


def test_an_exported_folder_says_how_it_is_read(config, export):
    out = export("sd15", 440, "unit", "sample")
    assert json.loads((out / "one_step.json").read_text()) == {"t_star": 440, "input": "unit", "prediction": "sample"}
    assert read(config("sd15", out)) == (440, "unit", "sample")
    assert read(config("sd15", out / "unet")) == (440, "unit", "sample")
    assert read(config("sd15", out / "unet" / "diffusion_pytorch_model.safetensors")) == (440, "unit", "sample")
    for wrong in ("model.t_star=441", "model.input=sigma", "model.prediction=epsilon", "model.prediction=teacher"):
        with pytest.raises(UserError, match="was trained with"):
            check(config("sd15", out, wrong))
        with pytest.raises(UserError, match="was trained with"):
            check(config("sd15", out / "unet", wrong))
    check(config("sd15", out, "model.prediction=sample"))


def test_an_export_of_an_eps_teacher_under_a_teacher_of_v_still_predicts_eps(pairs, config, export):
    out = export("sd15", 440, "unit")
    assert "prediction" not in json.loads((out / "one_step.json").read_text())
    assert read(config("sd21v", out)) == (440, "unit", "epsilon")
    for alone in (out / "unet", out / "unet" / "diffusion_pytorch_model.safetensors"):
        assert read(config("sd21v", alone)) == (440, "unit", "epsilon"), "its folder says so"
    assert read(config("sd15", out)) == (440, "unit", "teacher")


def test_an_exported_one_step_generator_is_no_teacher(config, export):
    run = config("sd15", None, f"model.teacher={export('sd15', 440, 'unit')}", "model.t_star=440")
    with pytest.raises(UserError, match="is an exported one-step generator"):
        check(run)


def test_a_record_holds_what_was_settled_and_resumes_whatever_the_table_says_later(
    pairs, config, tmp_path, monkeypatch
):
    place = lay(tmp_path / "nitrosd-realism_unet.safetensors", pairs("sdxl")[1], "unet")
    run = settled(config("sdxl", place))
    written = run.model_dump(mode="json")
    record = {"trajectory": trajectory(run)}
    assert {key: written["model"][key] for key in ("t_star", "input", "prediction")} == {
        "t_star": 249, "input": "unit", "prediction": "teacher",
    }  # fmt: skip
    monkeypatch.setattr(
        "dipp_ray.models.reading.published", lambda path: published("sdxl_lightning_1step_unet_x0.safetensors")
    )
    again = settled(type(run).model_validate(written))
    assert again == run and difference(record, again) is None
    # The command of then, which left it to the table, is told that it would be another run.
    assert "model.input was" in difference(record, settled(config("sdxl", place)))


def test_a_rank_keeps_the_teachers_frame_beside_the_generators(config, monkeypatch):
    monkeypatch.setattr("dipp_ray.roles.trained.prepare", lambda role, deterministic: torch.device("cpu"))
    monkeypatch.setattr("dipp_ray.roles.trained.quiet_libraries", lambda: None)
    run = config("sd15", None, "model.t_star=440", "model.prediction=sample")
    rank = TrainedRank(run, run.roles.score, run.score_optim)
    assert rank.diffusion is rank.frame.diffusion and rank.diffusion.kind == "epsilon"
    assert rank.one_step.diffusion.kind == "sample"


def test_a_run_is_trained_and_recorded_as_it_was_settled(config, monkeypatch):
    seen = []
    monkeypatch.setattr("dipp_ray.training.train._train", lambda config, *_: seen.append(config))
    monkeypatch.setattr("dipp_ray.training.train.watched_head", lambda *_: nullcontext())  # there is no Ray
    train(config("sd3", None))
    assert (seen[0].model.t_star, seen[0].model.input, seen[0].model.prediction) == (1000, "sigma", "teacher")


def test_a_record_from_before_the_setting_resumes(config):
    run = settled(config("sd15", None, "model.t_star=440"))
    before = trajectory(run)
    del before["model"]["prediction"]
    assert difference({"trajectory": before}, run) is None
    said = difference(
        {"trajectory": before}, settled(config("sd15", None, "model.t_star=440", "model.prediction=sample"))
    )
    assert said == 'model.prediction was "teacher" and is "sample"'
    old = config("sd15", "sdxl_lightning_1step_unet_x0.safetensors", "model.t_star=440", "model.input=unit")
    assert recorded(old).model.prediction == "teacher"


def test_teacher_and_score_model_keep_the_teachers_frame(config):
    """With the same x0 the score model learns and answers the same, whatever the generator predicts."""
    loops = []
    for prediction in ("teacher", "sample", "negative_flow"):
        t_star = "model.t_star=1000" if prediction == "negative_flow" else "model.t_star=440"
        run = config("sd15", None, f"model.prediction={prediction}", t_star)
        loops.append(plain_loop(run, check(run)))
    draws, prompts, embeds, x0 = loops[0].sample(Draws(7, 0, 0, range(2)), graph=False)
    answers = [loop.ask_score(draws, prompts, embeds, x0) for loop in loops]
    learned = [loop.train_score([(draws, prompts, embeds, x0)]) for loop in loops]
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
    assert learned[0] == learned[1] == learned[2]
    others = [loop.sample(draws, graph=False)[-1] for loop in loops[1:]]
    assert all((other - x0).abs().max() > 0.1 for other in others)
