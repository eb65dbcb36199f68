"""Networks of real size through the real roles on the CPU: what each process takes is what `check` says."""

import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

JOB = Path(__file__).parents[2] / "jobs" / "real_size.py"
NEEDED = 20 * 2**30  # bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "pixart", "sdxl"])
def test_each_process_takes_what_check_says(name):
    """Two steps of SD 1.5 and PixArt-XL/2; of SDXL one, a checkpoint, an interruption, and another one."""
    if psutil.virtual_memory().available < NEEDED:
        pytest.skip(f"{NEEDED / 2**30:.0f} GiB of memory are needed")
    with tempfile.TemporaryDirectory() as folder:  # tens of gigabytes, which pytest's own folders would keep
        ended = subprocess.run([sys.executable, JOB, name, "--folder", folder], stdout=subprocess.PIPE, text=True)
    assert ended.returncode == 0, ended.stdout
