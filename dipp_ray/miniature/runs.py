"""What is run on the miniature: the fit of its reward, distillation and alignment, with their paths filled in."""

import json
from pathlib import Path

from dipp_ray.config import RunConfig, load_config
from dipp_ray.miniature.build import Miniature
from dipp_ray.miniature.stages import Progress, build_stage
from dipp_ray.preferences.config import FitConfig, FitSettings, WorkerSettings
from dipp_ray.preferences.fit import fit_reward
from dipp_ray.reporting.report import write_report
from dipp_ray.storage.hashing import hash_of_file
from dipp_ray.training.train import train

PRESETS = Path(__file__).parent
FIT = FitSettings(steps=1500)
FIT_WORKERS = WorkerSettings(cpus=0.25)  # the roles of the distillation run beside it
GOLD = "dipp_ray.miniature.gold:GoldReward"


def fitted_reward(miniature: Miniature, say: Progress) -> None:
    """Fit the reward model, once, and cache it beside the miniature. Needs a connected Ray."""

    def make(aside: Path) -> None:
        def progress(step: int, values: dict) -> None:
            if "accuracy" in values:
                say(f"fit {step}/{FIT.steps}: held-out pair accuracy {values['accuracy']:.3f}")

        files = {"base": miniature.reward_base, "pairs": miniature.pairs_train, "held_out": miniature.pairs_test}
        paths = {key: str(path) for key, path in (files | {"out": aside}).items()}
        # `replace`: an interrupted fit of an older recipe is not worth asking about.
        fit_reward(FitConfig(**paths, fit=FIT, workers=FIT_WORKERS, replace=True), progress, say)

    made_of = {
        "pairs": hash_of_file(miniature.pairs_train),
        "base": hash_of_file(miniature.reward_base / "model.safetensors"),
        "settings": FIT.model_dump(mode="json"),
    }
    build_stage(reward_folder(miniature), made_of, make, say)


def reward_folder(miniature: Miniature) -> Path:
    return miniature.root / "reward"


def distil_preset(miniature: Miniature, out: Path) -> RunConfig:
    """Distillation, which trains on no reward and so needs none but the gold one that watches."""
    return preset("distil", miniature, out, [gold_term(miniature)], [])


def align_preset(miniature: Miniature, out: Path, distil: RunConfig, settings: list[str]) -> RunConfig:
    """Alignment of what `distil` left: its generator, and its score model, which describes that generator."""
    start = [f"model.generator={distil.path / 'pipeline'}", f"init.score_checkpoint={distil.path}"]
    trained = {"name": "preference", "model": "clip", "folder": str(reward_folder(miniature))}
    return preset("align", miniature, out, [trained, gold_term(miniature)], start + settings)


def gold_term(miniature: Miniature) -> dict:
    return {"name": "gold", "model": GOLD, "folder": str(miniature.gold), "held_out": True}


def preset(name: str, miniature: Miniature, out: Path, terms: list[dict], settings: list[str]) -> RunConfig:
    """The preset `name`.yaml beside this file with the paths filled in."""
    paths = [
        f"run.folder={out}",
        f"model.teacher={miniature.teacher}",
        f"data.prompts={miniature.prompts_train}",
        f"evaluation.prompts={miniature.prompts_eval}",
        f"reward.terms={json.dumps(terms)}",
    ]
    return load_config(PRESETS / f"{name}.yaml", paths + settings)


def finish(config: RunConfig, say: Progress, evaluates: bool = True) -> None:
    """Train to the end, and write the report. Needs a connected Ray."""
    train(config, say, evaluates)
    write_report(config.path)
