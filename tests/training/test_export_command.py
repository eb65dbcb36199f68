"""`dipp-ray export` on the checkpoints of a run's folder."""

import numpy as np
import pytest
import torch
import yaml

from dipp_ray.checkpoints.store import CheckpointStore
from dipp_ray.config import load_config
from dipp_ray.data.prompts import read_prompts
from dipp_ray.errors import UserError
from dipp_ray.models.pipeline import load_denoiser, one_step_of_folder
from dipp_ray.training.export import Compared, compare, export_run, exported_step
from dipp_ray.training.export_command import export_command
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2, step 1 the best; the moving average holds the step everywhere."""
    folder = tmp_path_factory.mktemp("export")
    teacher = pixart_pipeline(folder / "teacher")
    config = tiny_config(folder, teacher, prompt_file(folder / "prompts.parquet"))
    store = CheckpointStore(str(config.path / "checkpoints"))
    for step in (1, 2):
        weights = load_denoiser(teacher, "fp32").network.state_dict()
        tensors = {f"ema/{name}": torch.full_like(value, step) for name, value in weights.items()}
        store.commit(step, {"trajectory_hash": "-"}, store.write_share(step, "generator", 0, 1, tensors, {}))
    store.mark_best(1, 0.5)
    (config.path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return config.path


@pytest.mark.parametrize(("which", "step"), [("", 2), ("@best", 1), ("/checkpoints/step_000001", 1)])
def test_the_named_checkpoint_is_exported(run, tmp_path, which, step):
    said = []
    out = export_command(f"{run}{which}", tmp_path / "new" / "pipeline", said.append)
    assert f"exported {out}: its latents differ from the trainer's x0 by" in said[-1]
    assert one_step_of_folder(out) == {"t_star": 440, "input": "sigma"}
    assert all((value == step).all() for value in load_denoiser(out, "fp32").network.parameters())
    assert "Diff-Instruct++" in (out / "README.md").read_text()
    export_command(run, out, print)  # an earlier export is replaced
    assert all((value == 2).all() for value in load_denoiser(out, "fp32").network.parameters())


def test_where_the_start_was_best_no_checkpoint_is(tmp_path):
    teacher = pixart_pipeline(tmp_path / "teacher")
    config = tiny_config(tmp_path, teacher, prompt_file(tmp_path / "prompts.parquet"))
    store = CheckpointStore(str(config.path / "checkpoints"))
    share = store.write_share(1, "generator", 0, 1, {"ema/w": torch.zeros(1)}, {})
    store.commit(1, {"best": [0, -5.661]}, share)
    (config.path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with pytest.raises(UserError, match=r"held-out reward above the start's, -5\.661; export RUN"):
        export_command(f"{config.path}@best", tmp_path / "out", print)
    store.commit(1, {"best": None}, share)
    with pytest.raises(UserError, match="it has no held-out reward term"):
        export_command(f"{config.path}@best", tmp_path / "out", print)


def test_a_place_below_a_file_is_refused(run, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex is a file: choose another folder to export to$"):
        export_command(run, tmp_path / "thesis.tex" / "out", print)


def test_what_is_no_export_is_not_overwritten(run, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="nothing was overwritten"):
        export_command(run, tmp_path, print)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_export_that_gives_something_else_is_refused(run, tmp_path, monkeypatch):
    wrong = Compared(["a", "b"], torch.ones(2, 1, 8, 8), np.ones((2, 1, 8, 8)))
    monkeypatch.setattr("dipp_ray.training.export_command.compared_here", lambda *_: wrong)
    with pytest.raises(RuntimeError, match="does not reproduce the trainer's x0"):
        export_command(run, tmp_path / "out", print)


def test_a_missing_checkpoint_is_named(run, tmp_path):
    with pytest.raises(UserError, match="committed steps: 1, 2"):
        export_command(run / "checkpoints" / "step_000009", tmp_path / "out", print)
    with pytest.raises(UserError, match="is no run's folder"):
        export_command(run / "checkpoints", tmp_path / "out", print)
    with pytest.raises(UserError, match=f"{run}@best, or {run} for its latest"):
        export_command(f"{run}@bset", tmp_path / "out", print)
    with pytest.raises(UserError, match="has no adapter: leave --adapter out"):
        export_command(run, tmp_path / "out", print, adapter=True)
    assert not (tmp_path / "out").exists()


def test_a_run_whose_roles_are_gone_is_compared_all_the_same(run):
    config, said = load_config(run / "config.yaml"), []
    store = CheckpointStore(run / "checkpoints")
    prompts = read_prompts(config.data.prompts, config.data.column)
    export_run(config, store, store.require(2), prompts, said.append)
    assert "its latents differ from the trainer's x0 by" in said[0] and exported_step(config) == 2


def test_an_export_that_is_another_generator_is_not_marked(run, monkeypatch):
    config = load_config(run / "config.yaml")
    store = CheckpointStore(run / "checkpoints")
    prompts = read_prompts(config.data.prompts, config.data.column)
    for broken in (lambda *a: np.full((5, 1, 8, 8), np.nan), lambda *a: np.ones((5, 1, 8, 8))):
        monkeypatch.setattr("dipp_ray.training.export.generated", broken)
        monkeypatch.setattr("dipp_ray.training.export.COMPARED", 5)
        with pytest.raises(RuntimeError, match="does not reproduce the trainer's x0"):
            export_run(config, store, store.require(1), prompts, print)
        assert exported_step(config) is None


def test_of_a_rounded_x0_it_is_only_known_that_it_is_a_number(run, monkeypatch):
    """A generator that is trained in bf16 gives its x0 so; NaN is no rounding."""
    config, said = load_config(run / "config.yaml", ["roles.generator.dtype=bf16"]), []
    for error in (float("nan"), float("inf")):
        with pytest.raises(RuntimeError, match="does not reproduce the trainer's x0"):
            compare(config, run / "pipeline", error, said.append)
    compare(config, run / "pipeline", 0.02, said.append)
    assert len(said) == 3
