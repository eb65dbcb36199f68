"""Families through the whole Ray pipeline: trained, resumed, exported, and loaded by plain diffusers."""

import re

import pytest
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline

from dipp_ray.models.plain_pipeline import load_pipeline
from dipp_ray.training.train import train
from settings import tiny_config
from tiny import prompt_file
from tiny_families import FLOW, save_family


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "pixart", "sdxl", "sd3", "flux"])
def test_a_family_is_trained_resumed_and_exported(ray_session, tmp_path, name):
    teacher, prompts = save_family(name, tmp_path / "teacher"), prompt_file(tmp_path / "prompts.parquet")

    def run(steps):
        said = []
        config = tiny_config(
            tmp_path, teacher, prompts, f"run.steps={steps}", "data.batch_size=4", "data.micro_batches=2",
            "reward.terms=[{name: bright, model: 'tiny_models:Brightness'}]", "model.resolution=[16, 24]",
            f"model.t_star={1000 if name in FLOW else 440}", "checkpoint.every=2", "log.samples_every=2",
            "objective.guidance_scale=4.5",
        )  # fmt: skip
        return train(config, said.append) / "pipeline", said

    run(2)
    out, said = run(4)
    assert any("resumed from the checkpoint of step 2" in line for line in said)
    (error,) = (re.search(r"differ from the trainer's x0 by (\S+)", line) for line in said if "differ" in line)
    assert float(error[1]) < 1e-5
    arguments = load_pipeline(out).arguments()
    for loader in (DiffusionPipeline, AutoPipelineForText2Image):
        pipeline = loader.from_pretrained(out, low_cpu_mem_usage=False)
        images = pipeline(
            ["a thin one"], output_type="pt", generator=torch.Generator().manual_seed(0), **arguments
        ).images
        assert images.shape == (1, 3, 16, 24) and images.isfinite().all()
