"""The miniature: a small world of real parts, built by code on first use and cached."""

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from diffusers import AutoencoderKL, PixArtAlphaPipeline
from safetensors.torch import save_file

from dipp_ray.errors import UserError
from dipp_ray.miniature.autoencoder import AutoencoderRecipe, reconstruction_error, train_autoencoder
from dipp_ray.miniature.digits import SPLIT_SEED, load_scans
from dipp_ray.miniature.gold import GoldRecipe, GoldReward, classifier_accuracy, train_classifier
from dipp_ray.miniature.pairs import PairsRecipe, draw_candidates, make_pairs
from dipp_ray.miniature.reward_base import RewardBaseRecipe, save_reward_base
from dipp_ray.miniature.stages import Progress, build_stage, computing_threads
from dipp_ray.miniature.teacher import TeacherRecipe, train_teacher

REPORT = "report.json"
# On more, a teacher of this size spends its time at their barriers as soon as another process runs.
THREADS = 1


@dataclass(frozen=True)
class MiniatureRecipe:
    """All constants of the build. `version` grows when the code of a stage changes what comes out of it."""

    version: int = 1
    autoencoder: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    gold: GoldRecipe = field(default_factory=GoldRecipe)
    pairs: PairsRecipe = field(default_factory=PairsRecipe)
    reward_base: RewardBaseRecipe = field(default_factory=RewardBaseRecipe)


@dataclass(frozen=True)
class Miniature:
    """Where its parts lie."""

    root: Path
    prompts_train: Path  # parquet, column `prompt`: one row for each scan of the train part
    prompts_eval: Path  # the same of the test part
    reference: Path  # safetensors: the test scans, images [500, 3, 8, 8] in [0, 1] and digits [500]
    autoencoder: Path  # AutoencoderKL; a copy is part of the teacher
    teacher: Path  # diffusers pipeline folder
    gold: Path  # what GoldReward.load reads
    pairs_train: Path  # parquet: prompt, image_a, image_b (PNG), label = probability that a is preferred
    pairs_test: Path
    reward_base: Path  # untrained CLIPModel and its CLIPTokenizer

    @staticmethod
    def at(root: Path) -> "Miniature":
        root = Path(root)
        return Miniature(
            root=root,
            prompts_train=root / "digits" / "prompts_train.parquet",
            prompts_eval=root / "digits" / "prompts_eval.parquet",
            reference=root / "digits" / "reference.safetensors",
            autoencoder=root / "autoencoder",
            teacher=root / "teacher",
            gold=root / "gold",
            pairs_train=root / "pairs" / "train.parquet",
            pairs_test=root / "pairs" / "test.parquet",
            reward_base=root / "reward_base",
        )


def build_miniature(
    folder: Path, progress: Progress, recipe: MiniatureRecipe | None = None, only: Collection[str] | None = None
) -> Miniature:
    """Build in `folder` what is not there yet and give the paths. A stage whose recipe has changed is built anew.

    only: names of the stages to build (their folders' names), whose ingredients are there already; None: all of them.
    The same bits come out on one kind of machine. After an interruption the next call goes on at the first stage that
    is not finished. `progress` takes lines for a person.
    """
    recipe = recipe or MiniatureRecipe()
    paths = Miniature.at(folder)
    if paths.root.exists() and not paths.root.is_dir():
        raise UserError(f"the miniature's folder {paths.root} is a file: name another folder")
    paths.root.mkdir(parents=True, exist_ok=True)
    with computing_threads(THREADS):
        for stage, ingredients, make in stages(paths, recipe, progress):
            if only is None or stage.name in only:
                build_stage(stage, {"version": recipe.version, "split_seed": SPLIT_SEED} | ingredients, make, progress)
    return paths


def stages(
    paths: Miniature, recipe: MiniatureRecipe, progress: Progress
) -> list[tuple[Path, dict, Callable[[Path], None]]]:
    """(folder, its recipe with those of the stages that it is made from, what fills it), in order."""
    train, test, _ = load_scans()
    parts = (("train", train), ("test", test))
    autoencoder = {"autoencoder": asdict(recipe.autoencoder)}
    teacher = autoencoder | {"teacher": asdict(recipe.teacher)}
    gold = {"gold": asdict(recipe.gold)}

    def make_digits(folder: Path) -> None:
        for name, part in (("prompts_train", train), ("prompts_eval", test)):
            pq.write_table(pa.table({"prompt": list(part.prompts)}), folder / f"{name}.parquet")
        save_file({"images": test.images, "digits": test.digits}, folder / paths.reference.name)

    def make_autoencoder(folder: Path) -> None:
        vae = train_autoencoder(train, recipe.autoencoder, progress)
        vae.save_pretrained(folder)
        errors = {f"reconstruction_error_{name}": reconstruction_error(vae, part.images) for name, part in parts}
        report(folder, errors, progress)

    def make_teacher(folder: Path) -> None:
        vae = AutoencoderKL.from_pretrained(paths.autoencoder, low_cpu_mem_usage=False)
        vae.register_to_config(_name_or_path="")  # else the folder of this build would be part of the teacher
        train_teacher(vae, train, recipe.teacher, progress).save_pretrained(folder)

    def make_gold(folder: Path) -> None:
        classifier = train_classifier(train, recipe.gold, progress)
        GoldReward(classifier).save(folder, recipe.gold)
        hits = {f"gold_accuracy_{name}": classifier_accuracy(classifier, part) for name, part in parts}
        report(folder, hits, progress)

    def make_all_pairs(folder: Path) -> None:
        pipeline = load_teacher(paths.teacher)
        annotator = GoldReward.load(paths.gold)
        kinds = (
            ("train", recipe.pairs.train, recipe.pairs.samples),
            ("test", recipe.pairs.test, recipe.pairs.samples // 4),
        )
        for index, (name, count, samples) in enumerate(kinds):
            scans = dict(parts)[name]
            seed = recipe.pairs.seed + 1000 * index
            candidates = draw_candidates(scans, pipeline, samples, seed, recipe.pairs, progress)
            table = make_pairs(count, scans, candidates, annotator, recipe.pairs)
            pq.write_table(table, folder / f"{name}.parquet")

    return [
        (paths.prompts_train.parent, {}, make_digits),
        (paths.autoencoder, autoencoder, make_autoencoder),
        (paths.teacher, teacher, make_teacher),
        (paths.gold, gold, make_gold),
        (paths.pairs_train.parent, teacher | gold | {"pairs": asdict(recipe.pairs)}, make_all_pairs),
        (
            paths.reward_base,
            {"reward_base": asdict(recipe.reward_base)},
            lambda folder: save_reward_base(folder, recipe.reward_base),
        ),
    ]


def load_teacher(folder: Path) -> PixArtAlphaPipeline:
    """The pipeline, offline, without a progress bar of its own."""
    pipeline = PixArtAlphaPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def report(folder: Path, numbers: dict[str, float], progress: Progress) -> None:
    """Store in a stage's folder what it measured on itself, and tell it."""
    (folder / REPORT).write_text(json.dumps(numbers, indent=2) + "\n")
    told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in numbers.items())
    progress(f"miniature: {told}")
