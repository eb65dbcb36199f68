"""Two runs of different families train by one shared service at the same time, each to the bit as with its own."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_parity import ray_run
from test_run import TERMS

from dipp_ray.serving.deploy.config import ServiceConfig
from dipp_ray.serving.deploy.lifecycle import await_rewards, deploy_rewards, stop_rewards
from settings import tiny_config
from tiny import pixart_pipeline, prompt_file, sd_pipeline

STEPS = 4


@pytest.mark.slow
def test_two_trainers_of_different_families_share_a_service(serve_url, tmp_path):
    prompts = prompt_file(tmp_path / "prompts.parquet")
    families = {"pixart": pixart_pipeline(tmp_path / "pixart"), "sd": sd_pipeline(tmp_path / "sd")}
    models = [{**term, "role": {"cpus": 0.1}} for term in TERMS]
    vaes = [{"name": name, "folder": str(folder), "role": {"cpus": 0.1}} for name, folder in families.items()]
    service = {"name": "families", "models": models, "vaes": vaes, "deterministic": True, "batch_rows": 16}

    def run(name, reward):
        config = tiny_config(
            tmp_path / name, families[name], prompts, f"run.name={name}", f"run.steps={STEPS}", f"reward={reward}"
        )
        return ray_run(config, STEPS)

    deploy_rewards(ServiceConfig.model_validate(service), "/")
    await_rewards("families", 300, print)
    with ThreadPoolExecutor(len(families)) as both:
        ways = {"pixart": {"app": "families", "vae": "pixart"}, "sd": {"urls": [serve_url], "vae": "sd"}}
        shared = dict(zip(ways, both.map(run, ways, ways.values()), strict=True))
    stop_rewards("families")
    for name, (measured, x0) in shared.items():
        alone = run(name, {"terms": TERMS})
        assert measured == alone[0] and np.array_equal(x0, alone[1])
    assert not np.array_equal(shared["pixart"][1], shared["sd"][1])
