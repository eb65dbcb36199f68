"""A one-step generator exported from the tiny pipeline, and a finished run's folder around it."""

from pathlib import Path

import pytest
import yaml

from dipp_ray.models.export import export_pipeline
from dipp_ray.models.pipeline import load_denoiser, one_step_of, read_frame
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file


def one_step_folder(teacher: Path, weights_of: Path, out: Path) -> Path:
    weights = load_denoiser(weights_of, "fp32").network.state_dict()
    frame = read_frame(teacher)
    return export_pipeline(frame, weights, one_step_of(frame, 440, "sigma"), out)


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory):
    """Folder with teacher/, other/ (another seed), base/ (one step) and prompts.parquet."""
    folder = tmp_path_factory.mktemp("evaluation")
    teacher, other = pixart_pipeline(folder / "teacher", 0), pixart_pipeline(folder / "other", 1)
    one_step_folder(teacher, teacher, folder / "base")
    prompt_file(folder / "prompts.parquet")
    one_step_folder(teacher, other, folder / "aligned")
    return folder


@pytest.fixture
def run_config(tiny_world, tmp_path):
    """Configuration of a run whose folder holds config.yaml and pipeline/."""
    config = tiny_config(
        tmp_path,
        tiny_world / "teacher",
        tiny_world / "prompts.parquet",
        f"model.generator={tiny_world / 'base'}",
        "evaluation.samples=20",
        "evaluation.teacher_steps=3",
    )
    config.path.mkdir()
    (config.path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (config.path / "pipeline").symlink_to(tiny_world / "aligned")
    return config
