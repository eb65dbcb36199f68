"""LoRA on generator and score model: every family by the plain loop, and the Ray pipeline as the plain loop, whose
score ranks answer the teacher's question too; checkpoints and exports hold what trains."""

import json

import numpy as np
import pytest
import torch
from test_parity import assert_same, plain_run, ray_run

from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.config import load_config
from dipp_ray.diffusion.noise import EVALUATION, Draws
from dipp_ray.errors import UserError
from dipp_ray.evaluation.evaluate import evaluate, models_of
from dipp_ray.evaluation.evaluator import Evaluator
from dipp_ray.models.adapters import merge_adapter, trained_weights
from dipp_ray.models.export import adapter_error, export_error, write_adapter, write_pipeline
from dipp_ray.models.pipeline import frame_of
from dipp_ray.models.start import base_network
from dipp_ray.training.checks import check
from dipp_ray.training.plain import plain_loop
from dipp_ray.training.sizes import allowed_sizes
from dipp_ray.training.train import train
from dipp_ray.training.trajectory import trajectory
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file
from tiny_families import FAMILIES, FLOW, save_family

ROLES = ("generator", "score")
BOTH = ("adapters.generator={rank: 2, alpha: 4}", "adapters.score={rank: 3}")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return folder, pixart_pipeline(folder / "pipeline"), prompt_file(folder / "prompts.parquet")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_its_adapters_alone(name, tmp_path, world):
    teacher = save_family(name, tmp_path / "teacher")
    config = tiny_config(
        tmp_path, teacher, world[2], "data.batch_size=2", "data.micro_batches=1",
        f"objective.guidance_scale={1 if name == 'sanasprint' else 4.5}",
        "reward.terms=[{name: bright, model: 'tiny_models:Brightness'}]", *BOTH,
        f"model.resolution={[32, 64] if name in ('sana', 'sanasprint') else [16, 24]}",
        f"model.t_star={1000 if name in FLOW else 440}",
    )  # fmt: skip
    loop = plain_loop(config, check(config))
    trained = {role: dict(trained_weights(getattr(loop, role).network)) for role in ("generator", "score")}
    before = {
        role: {name: value.clone() for name, value in getattr(loop, role).network.state_dict().items()}
        for role in trained
    }
    for step in range(2):
        assert all(np.isfinite(value) for value in loop.step(step).values())
    for role, weights in trained.items():
        after = getattr(loop, role).network.state_dict()
        moved = {name for name in after if not torch.equal(after[name], before[role][name])}
        assert moved <= set(weights), "what is frozen stays"
        assert len(moved) > 0.8 * len(weights)
    draws, frame = Draws(7, EVALUATION, 0, range(2)), frame_of(config.model)
    _, texts, _, x0 = loop.sample(draws, graph=False)
    z, network = draws.normal("z", frame.latent_shape), loop.generator.network.network
    out = write_adapter(frame, network, loop.one_step, tmp_path / "adapter")
    assert adapter_error(out, base_network(config, frame), texts, z, x0.numpy(), frame) < 1e-5
    merge_adapter(network)
    write_pipeline(frame, network, loop.one_step, tmp_path / "out")
    assert export_error(tmp_path / "out", texts, z, x0.numpy()) < 1e-4


def test_no_teacher_pool_is_asked_for(world):
    assert allowed_sizes(tiny_config(*world, *BOTH))[0].teacher == 0
    assert allowed_sizes(tiny_config(*world, BOTH[0]))[0].teacher == 1


# Of one rank each, at stage 0, with two score updates; the others divide the work.
@pytest.mark.parametrize(
    "settings",
    [
        ["objective.order=overlapped", "objective.score_updates=2", "init.score_warmup_steps=1"],
        pytest.param(["roles.generator.workers=2", "roles.score.workers=2", "STAGE=2"], marks=pytest.mark.slow),
        pytest.param(["roles.generator.workers=2", "roles.score.workers=2", "STAGE=3"], marks=pytest.mark.slow),
        pytest.param(["roles.generator.gradient_checkpointing=true", "roles.score.workers=4"], marks=pytest.mark.slow),
    ],
    ids=["overlapped", "zero-2", "zero-3", "checkpointing"],
)
def test_the_ray_pipeline_equals_the_plain_loop(ray_session, world, settings):
    stage = [f"roles.{role}.zero_stage={s[6:]}" for s in settings if s.startswith("STAGE") for role in ROLES]
    whole = [f"roles.{role}.persistence_threshold=0" for role in ROLES]
    config = tiny_config(*world, *BOTH, *whole, *stage, *(s for s in settings if not s.startswith("STAGE")))
    assert_same(ray_run(config, 6), plain_run(config, 6), 1e-4)


@pytest.mark.slow
def test_frozen_weights_in_bf16_change_nothing_where_each_rank_reads_its_own_part(ray_session, world):
    roles = [f"roles.{role}={{workers: 2, zero_stage: 3, persistence_threshold: 0, dtype: bf16, frozen: FROZEN}}"
             for role in ROLES]  # fmt: skip
    runs = [
        ray_run(tiny_config(*world, *BOTH, *(role.replace("FROZEN", frozen) for role in roles)), 4)
        for frozen in ("fp32", "bf16")
    ]
    assert_same(*runs, tolerance=0)


@pytest.fixture
def run(ray_session, tmp_path, world):
    """Trains the run of a name to a number of steps; returns its folder and what it said."""

    def run(name, steps, *settings, evaluates=False):
        said: list[str] = []
        config = tiny_config(
            tmp_path, *world[1:], *BOTH, f"run.name={name}", f"run.steps={steps}", "checkpoint.every=2",
            "log.samples_every=2", *settings,
        )  # fmt: skip
        return train(config, said.append, evaluates), said

    return run


def state_of(folder, step, group):
    store = CheckpointStore(str(folder / "checkpoints"))
    return store.read_group(store.require(step), group)[0]


def test_a_run_saves_what_trains_and_exports_both(run, monkeypatch):
    with monkeypatch.context() as here:  # not where a driver is, which may be a head without CPUs
        here.setattr(Evaluator, "__init__", lambda *_: pytest.fail("the command itself evaluates"))
        folder, said = run("lora", 2, "evaluation.samples=10", "evaluation.teacher_steps=2", evaluates=True)
    for group in ROLES:
        tensors = state_of(folder, 2, group)
        assert tensors and all(".lora_" in name for name in tensors), "the frozen weights are in no checkpoint"
    assert sum("differ from the trainer's x0" in line for line in said) == 2, "the pipeline's and the adapter's"
    # Evaluated where its roles ran, by its own reward service: the figures are those of one process, as far as pictures
    # are the same: in other batches a value on the border of two of their 255 steps may fall to the other side.
    placed = json.loads((folder / "evaluation.json").read_text())
    config = load_config(folder / "config.yaml")
    local = evaluate({name: models_of(config, folder / "pipeline", None)[name] for name in placed["models"]}, config)
    for name, values in local["models"].items():
        for key in values.keys() - {"images_per_second"}:
            assert placed["models"][name][key] == pytest.approx(values[key], rel=1e-4, abs=1e-3), (name, key)
    assert placed["metrics"].keys() == local["metrics"].keys() and (folder / "evaluation_grid.png").exists()
    assert "PeftModel" in (folder / "adapter" / "README.md").read_text()


@pytest.mark.slow
def test_a_run_goes_on_as_if_never_interrupted_and_another_from_its_adapters(run, world, tmp_path):
    run("lora", 2)
    folder, said = run("lora", 4)
    whole, _ = run("whole", 4)
    assert any("resumed from the checkpoint of step 2" in line for line in said)
    for group in ROLES:
        ours, theirs = state_of(folder, 4, group), state_of(whole, 4, group)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    settings = [f"model.generator={folder / 'adapter'}", "init.score=checkpoint", f"init.score_checkpoint={folder}"]
    aligned, _ = run("aligned", 2, *settings)
    assert (aligned / "adapter" / "adapter_config.json").exists()


def test_a_score_model_of_other_weights_is_refused(world, tmp_path):
    store = CheckpointStore(str(tmp_path / "distilled" / "checkpoints"))
    before = tiny_config(*world, *BOTH)
    files = [file for group in ROLES for file in store.write_share(3, group, 0, 1, {"master/w": torch.zeros(1)}, {})]
    store.commit(3, {"trajectory": trajectory(before)}, files)
    settings = ["init.score=checkpoint", f"init.score_checkpoint={tmp_path / 'distilled'}"]
    check(tiny_config(*world, *BOTH, *settings))
    with pytest.raises(UserError, match=r"was trained with adapters.score=.*rank.*3.* and this run has null"):
        check(tiny_config(*world, BOTH[0], *settings))
