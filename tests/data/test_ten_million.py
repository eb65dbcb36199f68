"""Ten million prompts in bounded memory, in a process of their own. The figures: `pytest -m slow tests/data -s`."""

import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

MEASURED = """
import json, resource, sys, time
from dipp_ray.data.prompts import Prompts, read_prompts
from dipp_ray.data.order import Order
from dipp_ray.diffusion.noise import Draws

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

said = {"before": peak()}
clock = time.perf_counter()
groups = read_prompts(sys.argv[1], "prompt").groups
said |= {"count": len(groups), "looked_at_s": time.perf_counter() - clock, "looked_at": peak()}
for name, steps in (("epoch", 2000), ("replacement", 20)):
    prompts = Prompts(groups, Order(groups.counts, name, batch_size=64))
    clock = time.perf_counter()
    seen = [prompts.of(Draws(0, step, 0, range(64))) for step in range(steps)]
    said |= {f"{name}_ms_a_step": 1e3 * (time.perf_counter() - clock) / steps, name: peak()}
    if name == "epoch":
        texts = [text for batch in seen for text in batch]
        assert len(set(texts)) == len(texts)
clock = time.perf_counter()
said |= {"digest": prompts.digest(), "digest_s": time.perf_counter() - clock, "end": peak()}
print(json.dumps(said))
"""
FILES, ROWS, GROUP = 20, 500_000, 50_000


@pytest.mark.slow
def test_ten_million_prompts_take_bounded_memory(tmp_path):
    for file in range(FILES):
        texts = [f"a photograph of object {file * ROWS + i:08}, in the style of nobody, at dusk" for i in range(ROWS)]
        table = pyarrow.table({"prompt": texts})
        pyarrow.parquet.write_table(table, tmp_path / f"part-{file:02}.parquet", row_group_size=GROUP)
    ran = subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path)], capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    print({key: f"{value / 2**20:,.0f} MiB" if isinstance(value, int) else value for key, value in said.items()})
    assert said["count"] == FILES * ROWS
    # The texts alone are 660 MB: 256 MiB are remembered, beside the groups that are being read.
    assert said["end"] - said["before"] < 600 * 2**20
