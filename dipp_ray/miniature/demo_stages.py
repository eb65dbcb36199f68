"""One stage of the demo, as a command: python -m dipp_ray.miniature.demo_stages NAME OUT."""

import sys
from pathlib import Path

from dipp_ray.cli import guarded
from dipp_ray.connecting import connect
from dipp_ray.reporting.quiet import quiet_libraries


def main(name: str, out: Path) -> None:
    quiet_libraries()  # before what follows loads torch
    from dipp_ray.miniature.build import Miniature, build_miniature
    from dipp_ray.miniature.runs import align_preset, distil_preset, finish, fitted_reward
    from dipp_ray.storage.cache import cache_folder

    miniature = Miniature.at(cache_folder() / "miniature")
    match name:
        case "teacher":
            build_miniature(miniature.root, print, only=("digits", "autoencoder", "teacher"))
        case "gold":
            build_miniature(miniature.root, print, only=("gold", "reward_base"))
        case "reward":
            build_miniature(miniature.root, print, only=("pairs",))
            connect()
            fitted_reward(miniature, print)
        case "distil":
            connect()
            # Its generator is measured as the start of the alignment, beside what became of it.
            finish(distil_preset(miniature, out), print, evaluates=False)
        case "align":
            connect()
            finish(align_preset(miniature, out, distil_preset(miniature, out), []), print)
        case _:
            raise ValueError(f"{name} is no stage of the demo")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1], Path(sys.argv[2]))))
