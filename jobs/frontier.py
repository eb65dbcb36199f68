"""Gold against diversity at several reward scales, relative to the starting generator, on the miniature.

    python jobs/frontier.py [--scales 30 100 300] [--out runs]

Uses the demo's distilled generator (made if it is missing) and aligns it once for each scale.
"""

import argparse
import json
import sys
from pathlib import Path

import rich
from rich.table import Table

from dipp_ray.cli import guarded
from dipp_ray.connecting import connect
from dipp_ray.reporting.quiet import quiet_libraries


def main() -> None:
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scales", type=float, nargs="+", default=[30.0, 100.0, 300.0])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where the run folders go (%(default)s)")
    given = parser.parse_args()
    from dipp_ray.miniature.demo import make

    make(("teacher", "gold", "reward", "distil"), given.out, print, connect)

    from dipp_ray.miniature.build import Miniature
    from dipp_ray.miniature.runs import align_preset, distil_preset, finish
    from dipp_ray.storage.cache import cache_folder

    miniature = Miniature.at(cache_folder() / "miniature")
    distil = distil_preset(miniature, given.out)
    table = Table("reward scale", "proxy", "gold", "gold gained", "diversity kept", "digit accuracy", "Frechet")
    rows = []
    for scale in given.scales:
        name = [f"run.name=frontier-{scale:g}", f"objective.reward_scale={scale:g}"]
        config = align_preset(miniature, given.out, distil, name)
        finish(config, print)
        models = json.loads((config.path / "evaluation.json").read_text())["models"]
        if not rows:
            rows.append(("start", models["base"], models["base"]))
        rows.append((f"{scale:g}", models["aligned"], models["base"]))
    for name, found, base in rows:
        table.add_row(
            name,
            f"{found['preference']:.2f}",
            f"{found['gold']:.2f}",
            f"{found['gold'] - base['gold']:+.2f}",
            f"{found['diversity'] / base['diversity']:.2f}",
            f"{found['digit_accuracy']:.3f}",
            f"{found['frechet']:.2f}",
        )
    rich.print(table)


if __name__ == "__main__":
    sys.exit(guarded(main))
