import subprocess
import sys

# The loggers do what DeepSpeed and Ray Serve do when they start: set their level anew, with a handler of their own.
SCRIPT = """
import logging, os, sys
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
from dipp_ray.reporting.quiet import quiet_libraries
quiet_libraries(); quiet_libraries()
assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "0", "the user's own setting stays"
assert not {"ray", "torch", "deepspeed", "diffusers", "transformers"} & set(sys.modules)
for name in ("DeepSpeed", "ray.serve"):
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.propagate = False
logging.getLogger("ray.serve").info("Started Serve")
logging.getLogger("ray.serve").error("a replica died")
logging.getLogger("DeepSpeed").warning("Setting accelerator to CPU. If you have GPU ...")
logging.getLogger("DeepSpeed").warning("gradient overflow")
logging.getLogger("transformers.utils.import_utils").warning("`CLIPImageProcessor` requires torchvision (not ...)")
from tqdm.auto import tqdm
list(tqdm(range(3)))
"""


def test_noise_goes_and_faults_stay():
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["a replica died", "gradient overflow"]
    assert ran.stderr == ""
