"""Every family distils and aligns by the plain loop, and what was trained is what plain diffusers gives of its export;
a family of one's own does so too, named by the configuration."""

import json

import pytest
import torch

from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.errors import UserError
from dipp_ray.evaluation.evaluate import evaluate
from dipp_ray.evaluation.sample_command import sample
from dipp_ray.models.export import export_error, export_pipeline
from dipp_ray.models.pipeline import frame_of
from dipp_ray.training.checks import check
from dipp_ray.training.plain import plain_loop
from settings import tiny_config
from tiny import prompt_file
from tiny_families import FAMILIES, FLOW, save_family


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return prompt_file(tmp_path_factory.mktemp("prompts") / "prompts.parquet")


def config_of(name, folder, teacher, prompts, *overrides):
    size = "[32, 64]" if name in ("sana", "sanasprint") else "[16, 24]"
    guidance = 1 if name == "sanasprint" else 4.5  # it has no null branch
    return tiny_config(
        folder, teacher, prompts, "data.batch_size=2", "data.micro_batches=1", f"objective.guidance_scale={guidance}",
        "reward.terms=[{name: bright, model: 'tiny_models:Brightness'}]", f"model.resolution={size}",
        f"model.t_star={1000 if name in FLOW else 440}", *overrides,
    )  # fmt: skip


def trained(config):
    """The loop after two steps, of which all that was measured is finite, and all that should have has moved."""
    loop = plain_loop(config, check(config))
    before = {role: [p.clone() for p in getattr(loop, role).network.parameters()] for role in ("generator", "score")}
    teacher = [p.clone() for p in loop.teacher.parameters()]
    measured = [loop.step(step) for step in range(2)]
    assert all(torch.tensor(value).isfinite() for values in measured for value in values.values())
    assert all(values["score_gap"] > 0 for values in measured[1:])  # at step 0 it may be guidance alone
    for role, parameters in before.items():
        now = list(getattr(loop, role).network.parameters())
        moved = sum(not torch.equal(p, q) for p, q in zip(parameters, now, strict=True))
        assert moved > 0.5 * len(now), f"of the {role}'s {len(now)} parameters only {moved} moved"
    assert all(torch.equal(p, q) for p, q in zip(teacher, loop.teacher.parameters(), strict=True))
    return loop


def exported(loop, config, out):
    """The export of the loop's moving average, and its difference from the loop's own x0 at fixed noises."""
    frame = frame_of(config.model)
    export_pipeline(frame, {name.removeprefix("network."): w for name, w in loop.average.items()}, loop.one_step, out)
    loop.generator.network.load_state_dict(loop.average)
    draws = Draws(7, EVALUATION, 0, range(2))
    _, texts, _, x0 = loop.sample(draws, graph=False)
    z = draws.normal("z", frame.latent_shape)
    return export_error(out, texts, z, x0.numpy(), frame_of(config.model, out))


@pytest.mark.parametrize("scale", [0, 2], ids=["distils", "aligns"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_by_the_plain_loop(name, scale, tmp_path_factory, tmp_path, prompts):
    teacher = tmp_path_factory.getbasetemp() / f"trained-{name}"
    if not teacher.exists():
        save_family(name, teacher)
    config = config_of(name, tmp_path, teacher, prompts, f"objective.reward_scale={scale}")
    loop = trained(config)
    assert loop.latent_shape == frame_of(config.model).latent_shape
    if scale:
        assert exported(loop, config, tmp_path / "pipeline") < 1e-5


OWN = "model.family=own_family:AuraFlow"


def test_a_family_of_ones_own_is_checked_trained_exported_and_evaluated(tmp_path, prompts):
    teacher = save_family("auraflow", tmp_path / "teacher")
    config = config_of(
        "auraflow", tmp_path, teacher, prompts, OWN, "evaluation.samples=2", "evaluation.teacher_steps=2"
    )
    loop = trained(config)
    assert exported(loop, config, tmp_path / "pipeline") < 1e-5
    result = evaluate({"aligned": tmp_path / "pipeline", "teacher": teacher}, config, lambda text: None)
    (image,) = sample(tmp_path / "pipeline", ["a thin one"], tmp_path / "one.png", family="own_family:AuraFlow")
    assert image.exists()
    assert result["samples"] == 2 and set(result["models"]) == {"aligned", "teacher"}
    assert json.loads((tmp_path / "pipeline" / "one_step.json").read_text()) == {
        "t_star": 1000, "input": "sigma", "resolution": [16, 24],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        ("null", "name a family of your own by model.family"),
        ("own_family", "names no class: write package.module:Class"),
        ("own_family:Aurora", "has no subclass Aurora"),
        ("no_such_module:Family", "does not import"),
        ("dipp_ray.models.families.flux:Flux", "is a AuraFlowPipeline, but"),
    ],
)
def test_a_family_that_is_not_there_is_one_sentence(family, sentence, tmp_path, prompts):
    teacher = save_family("auraflow", tmp_path / "teacher")
    with pytest.raises(UserError, match=sentence):
        check(config_of("auraflow", tmp_path, teacher, prompts, f"model.family={family}"))
