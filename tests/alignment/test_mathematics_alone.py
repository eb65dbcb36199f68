"""The mathematics stands alone: torch and NumPy, and no library of configuration, distribution or pipelines."""

import subprocess
import sys

HEAVY = {"pydantic", "yaml", "ray", "deepspeed", "diffusers", "transformers", "dipp_ray.config", "dipp_ray.settings"}
IMPORT_ALL = """
import importlib, pkgutil, sys
import dipp_ray.alignment, dipp_ray.diffusion
for package in (dipp_ray.alignment, dipp_ray.diffusion):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(*sys.modules, sep="\\n")
"""


def loaded_by(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_alignment_and_diffusion_load_nothing_but_torch_and_numpy():
    loaded = loaded_by(IMPORT_ALL)
    assert {"torch", "numpy", "dipp_ray.alignment.objective", "dipp_ray.diffusion.prompt_embeds"} <= loaded
    assert not loaded & HEAVY
    own = {name for name in loaded if name.startswith("dipp_ray.")}
    beyond = {name for name in own if not name.startswith(("dipp_ray.alignment", "dipp_ray.diffusion"))}
    assert beyond == {"dipp_ray.errors"}


def test_a_configuration_is_read_without_torch():
    assert not loaded_by("import sys, dipp_ray.config; print(*sys.modules)") & {"torch", "ray", "diffusers"}
