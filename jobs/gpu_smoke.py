"""All four roles on one CUDA device by fractions, in bf16, against the same run on the CPU in fp32.

    python jobs/gpu_smoke.py

Both runs take the tests' tiny pipeline (PixArt's real classes, random weights) through a few steps of alignment with
the same noises. Losses and rewards of every step must agree within TOLERANCE. Exit status: 0 they agree, 1 they do
not, 2 there is no CUDA device. `--rehearse` runs the bf16 side on the CPU, which tries the script and not the GPU.

It has never been run on a GPU: until it has been, treat everything about GPUs here as untested.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from dipp_ray.reporting.quiet import quiet_libraries

TESTS = Path(__file__).resolve().parent.parent / "tests"
# Ray's workers import the tests' reward by this, so it is set before Ray starts.
os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
sys.path.insert(0, str(TESTS))

STEPS = 4
GPU_SHARES = {"generator": 0.25, "score": 0.25, "teacher": 0.2, "reward": 0.2, "text": 0.1}
# Relative to the CPU's value; `reward`, which lies around 0 with a deviation of order 1, in absolute terms. In a
# rehearsal the largest errors were 0.0005, 0.007, 0.0033 and 0.0045.
TOLERANCE = {"score_loss": 0.01, "score_gap": 0.05, "reward": 0.02, "reward_gradient_norm": 0.03}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: bf16 on the CPU")
    rehearse = parser.parse_args().rehearse
    quiet_libraries()
    import torch

    if not rehearse and not torch.cuda.is_available():
        print("gpu_smoke.py: there is no CUDA device here; --rehearse tries the script on the CPU", file=sys.stderr)
        return 2
    from dipp_ray.connecting import connect

    connect()
    with tempfile.TemporaryDirectory() as folder:
        expected = measured(Path(folder), "cpu-fp32")
        shares = {role: 0.0 if rehearse else share for role, share in GPU_SHARES.items()}
        settings = [f"roles.{role}.gpus={share}" for role, share in shares.items()]
        settings += [f"roles.{role}.dtype=bf16" for role in ("generator", "score", "teacher", "reward")]
        found = measured(Path(folder), "cpu-bf16" if rehearse else "cuda-bf16", *settings)
    return report(expected, found)


def measured(folder: Path, name: str, *settings: str) -> list[dict]:
    """The metrics of every step of a tiny alignment with these settings."""
    from dipp_ray.reporting.metrics import read_metrics
    from dipp_ray.training.train import train
    from settings import tiny_config
    from tiny import pixart_pipeline, prompt_file

    pipeline = folder / "pipeline"
    if not pipeline.exists():
        pixart_pipeline(pipeline)
    prompts = prompt_file(folder / "prompts.parquet")
    config = tiny_config(folder, pipeline, prompts, f"run.name={name}", f"run.steps={STEPS}", *settings)
    return [record for record in read_metrics(train(config, print)) if "score_loss" in record]


def report(expected: list[dict], found: list[dict]) -> int:
    """Print every comparison; 0 if all of them hold, else 1."""
    wrong = len(expected) != STEPS or len(found) != STEPS
    for one, other in zip(expected, found, strict=True):
        for key, tolerance in TOLERANCE.items():
            error = abs(other[key] - one[key]) / (1 if key == "reward" else abs(one[key]))
            good = error <= tolerance  # false for NaN
            wrong |= not good
            print(f"step {one['step']} {key:22} {one[key]:10.4f} {other[key]:10.4f}  error {error:.4f} of {tolerance}"
                  f"{'' if good else '  TOO LARGE'}")  # fmt: skip
    print("the two runs disagree" if wrong else "the two runs agree")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
