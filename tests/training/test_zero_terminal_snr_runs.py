"""A teacher of zero terminal SNR: v is read, trained on and exported at the very end; eps is refused there."""

import json

import pytest
import torch

from dipp_ray.errors import UserError
from dipp_ray.models.export import export_error, export_pipeline
from dipp_ray.models.pipeline import frame_of
from dipp_ray.training.checks import check
from dipp_ray.training.plain import plain_loop
from settings import tiny_config
from tiny import prompt_file
from tiny_families import save_family

WHOLE = ("objective.divergence_timesteps=[998, 1000]", "objective.score_timesteps=[998, 1000]")


def teacher_of(name, folder):
    path = save_family(name, folder) / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rescale_betas_zero_snr": True}))
    return folder


def config_of(tmp_path, teacher, *overrides):
    return tiny_config(
        tmp_path, teacher, prompt_file(tmp_path / "prompts.parquet"), "data.batch_size=4", "data.micro_batches=1",
        "objective.reward_scale=0", *overrides,
    )  # fmt: skip


@pytest.mark.parametrize("convention", ["unit", "sigma"])
def test_v_is_trained_and_exported_at_the_end(tmp_path, convention):
    teacher = teacher_of("sd21v", tmp_path / "teacher")
    settings = (f"model.input={convention}", "model.t_star=999", "objective.score_weight=x0", *WHOLE)
    config = config_of(tmp_path, teacher, *settings)
    loop = plain_loop(config, check(config))
    assert loop.diffusion.schedule.alphas_cumprod[-1] == 0
    for step in range(2):
        assert all(torch.tensor(value).isfinite() for value in loop.step(step).values())
    weights = loop.generator.network.network.state_dict()
    frame, (draws,) = frame_of(config.model), loop.micro_batches(0, 0)
    _, texts, _, x0 = loop.sample(draws, graph=False)
    out = export_pipeline(frame, weights, loop.one_step, tmp_path / "out")
    assert export_error(out, texts, draws.normal("z", frame.latent_shape), x0.numpy()) < 1e-5


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        (("model.t_star=999",), "model.t_star"),
        (("objective.divergence_timesteps=[20, 1000]",), "objective.divergence_timesteps"),
        (("objective.score_weight=x0",), "objective.score_timesteps"),
    ],
)
def test_eps_is_refused_where_it_says_nothing(tmp_path, setting, key):
    teacher = teacher_of("sd15", tmp_path / "teacher")
    check(config_of(tmp_path, teacher))  # the ranges by default ask nothing there
    with pytest.raises(UserError, match=rf"{key} holds t=999"):
        check(config_of(tmp_path, teacher, *setting))
