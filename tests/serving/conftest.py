"""Services that several modules call by HTTP."""

import pytest
from http_calls import BRIGHT, CHUNK, client, made

from dipp_ray.models.latents import LatentDecoder
from dipp_ray.serving.core.scoring import Scorer
from tiny_models import save_clip, save_pipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        "clip": save_clip(tmp_path_factory.mktemp("clip")),
        "vae": save_pipeline(tmp_path_factory.mktemp("pipeline")),
    }


@pytest.fixture(scope="module")
def full(folders):
    """clip and bright are the sum, watch is held out; latents and images; calls to the bit."""
    watch = {"name": "watch", "model": "tiny_models:NoGradient", "held_out": True}
    models = [{"name": "clip", "model": "clip", "folder": folders["clip"], "weight": 0.7}, BRIGHT, watch]
    return made(models, vae=folders["vae"], deterministic=True)


@pytest.fixture(scope="module")
def local(full, folders):
    return Scorer(full.reward_terms, LatentDecoder.from_folder(folders["vae"]), CHUNK)


@pytest.fixture(scope="module")
def web(full):
    with client(full) as opened:
        yield opened


@pytest.fixture(scope="module")
def small():
    """Narrow limits."""
    limits = {"body_mib": 0.125, "header_kib": 4, "rows": 8, "image_side": 64, "prompt_chars": 100}
    with client(made(limits=limits)) as opened:
        yield opened
