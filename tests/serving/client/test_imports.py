"""What a trainer takes on by importing the client."""

import subprocess
import sys

CLIENT = ("reward_client", "by_http", "by_handle", "configured")
HEAVY = ("torch", "ray", "fastapi", "prometheus_client", "PIL", "dipp_ray.serving.core", "dipp_ray.serving.deploy")


def test_the_client_brings_neither_models_nor_the_service():
    imports = ", ".join(f"dipp_ray.serving.client.{name}" for name in CLIENT)
    program = f"import sys, {imports}\nprint([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
