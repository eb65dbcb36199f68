"""The demo: the whole pipeline on the miniature, by the same code that a full-size run uses."""

import json
import time
from pathlib import Path

from dipp_ray.config import RunConfig, load_config
from dipp_ray.miniature.build import Miniature, build_miniature
from dipp_ray.miniature.stages import Progress, build_stage, only_builder
from dipp_ray.preferences.config import FitConfig, FitSettings, WorkerSettings
from dipp_ray.preferences.fit import fit_reward
from dipp_ray.reporting.report import write_report
from dipp_ray.storage.cache import cache_folder
from dipp_ray.storage.hashing import hash_of_file
from dipp_ray.training.train import train

PRESETS = Path(__file__).parent
FIT = FitSettings(steps=1500)
FIT_WORKERS = WorkerSettings(threads=2)


def demo(out: Path, say: Progress) -> Path:
    """Build, fit, distil, align, evaluate, report; returns the aligned run's folder. Needs a connected Ray.

    What is finished already is kept: the miniature in the cache, the runs in `out`.
    """
    start = time.monotonic()

    def stage(text: str) -> None:
        say(f"\n[{time.monotonic() - start:.0f} s] {text}")

    stage("the miniature: real handwritten digits, a teacher, a judge, preference pairs")
    miniature = build_miniature(cache_folder() / "miniature", say)
    stage("the reward model, fitted to the preference pairs")
    reward = fitted_reward(miniature, say)
    stage("distillation: the teacher becomes a one-step generator")
    distil = preset("distil", miniature, reward, out, [])
    finish(distil, say)
    stage("alignment: Diff-Instruct++ raises the reward, the divergence to the teacher holds it back")
    align = align_preset(miniature, reward, out, distil, [])
    finish(align, say)
    stage(f"done: open {align.path / 'report.html'}")
    return align.path


def fitted_reward(miniature: Miniature, say: Progress) -> Path:
    """The folder of the reward model, fitted once and cached beside the miniature."""
    folder = miniature.root / "reward"
    pairs = hash_of_file(miniature.pairs_train)

    def make(aside: Path) -> None:
        def progress(step: int, values: dict) -> None:
            if "accuracy" in values:
                say(f"  fit {step}/{FIT.steps}: held-out pair accuracy {values['accuracy']:.3f}")

        files = {"base": miniature.reward_base, "pairs": miniature.pairs_train, "held_out": miniature.pairs_test}
        paths = {key: str(path) for key, path in (files | {"out": aside}).items()}
        # `replace`: an interrupted fit of an older recipe is not worth asking about.
        fit_reward(FitConfig(**paths, fit=FIT, workers=FIT_WORKERS, replace=True), progress, say)

    base = hash_of_file(miniature.reward_base / "model.safetensors")
    with only_builder(miniature.root, say):
        build_stage(folder, {"pairs": pairs, "base": base, "settings": FIT.model_dump(mode="json")}, make, say)
    return folder


def preset(name: str, miniature: Miniature, reward: Path, out: Path, settings: list[str]) -> RunConfig:
    """The preset `name`.yaml beside this file with the paths filled in."""
    gold = "dipp_ray.miniature.gold:GoldReward"
    terms = [
        {"name": "preference", "model": "clip", "folder": str(reward)},
        {"name": "gold", "model": gold, "folder": str(miniature.gold), "held_out": True},
    ]
    paths = [
        f"run.folder={out}",
        f"model.teacher={miniature.teacher}",
        f"data.prompts={miniature.prompts_train}",
        f"evaluation.prompts={miniature.prompts_eval}",
        f"reward.terms={json.dumps(terms)}",
    ]
    return load_config(PRESETS / f"{name}.yaml", paths + settings)


def align_preset(miniature: Miniature, reward: Path, out: Path, distil: RunConfig, settings: list[str]) -> RunConfig:
    """Alignment of what `distil` left: its generator, and its score model, which describes that generator."""
    start = [f"model.generator={distil.path / 'pipeline'}", f"init.score_checkpoint={distil.path}"]
    return preset("align", miniature, reward, out, start + settings)


def finish(config: RunConfig, say: Progress) -> None:
    train(config, say, evaluates=True)
    write_report(config.path)
