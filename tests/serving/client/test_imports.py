"""What a trainer takes on by importing the client."""

import subprocess
import sys

CLIENT = [f"dipp_ray.serving.client.{name}" for name in ("reward_client", "by_http", "by_handle", "configured")]
MODELS = ("torch", "PIL", "dipp_ray.serving.http", "dipp_ray.serving.deploy")


def loaded(imports, suspected):
    program = f"import sys, {', '.join(imports)}\nprint(*[name for name in {suspected} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_the_client_brings_neither_ray_nor_the_service():
    assert loaded(CLIENT, (*MODELS, "ray", "fastapi", "prometheus_client", "dipp_ray.serving.core")) == []


def test_the_way_straight_to_the_models_brings_neither_torch_nor_a_deployment():
    assert loaded(["dipp_ray.serving.direct"], MODELS) == []
