"""Models side by side on the same prompts and noises: a table, evaluation.json and a grid."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import rich
import torch
from rich.table import Table
from torch import Tensor

from dipp_ray.config import RunConfig, load_config
from dipp_ray.errors import UserError
from dipp_ray.evaluation.evaluator import Evaluates, Evaluator, batch_of, check_networks, how_to_sample, texts_of
from dipp_ray.evaluation.folders import home_of, pipeline_of, run_in_store, run_of
from dipp_ray.evaluation.frechet import Gaussian
from dipp_ray.evaluation.kept import Kept, shards_of, stamp_of
from dipp_ray.evaluation.measure import Units, about, differences, intervals, joined, means
from dipp_ray.evaluation.pngs import from_pngs
from dipp_ray.evaluation.reference import reference_of
from dipp_ray.hub.fetch import local
from dipp_ray.models.bare import is_bare
from dipp_ray.models.pipeline import frame_of
from dipp_ray.reporting.differences import BEGAN, ENDED, Difference, pair_of, signed, with_interval
from dipp_ray.reporting.grid import save_grid
from dipp_ray.reporting.pace import Ticker
from dipp_ray.reporting.progress import number
from dipp_ray.reporting.waiting import waiting
from dipp_ray.storage.aside import made_folder, whole_file

Say = Callable[[str], None]
GRID_PROMPTS = 16
GRID_COLUMNS = 8
JSON, GRID, IMAGES = "evaluation.json", "evaluation_grid.png", "evaluation"


def evaluate(
    models: dict[str, str | Path],
    config: RunConfig,
    say: Say = print,
    out: Path | None = None,
    evaluator: Evaluates | None = None,
) -> dict:
    """Measure pipeline folders by name ('base', 'aligned', 'teacher') as the configuration says.

    Returns {"prompts", "samples", "models": {name: {key: value or null}}, "within": {name: {key: half the width of a
    95 % interval}}, "difference": {key: {"mean", "within"}} of aligned minus base over the same samples, "metrics":
    {key: {"label", "better", "unit"}}, "made": {name: how}, "grid"}. A key without units has no interval.
    Exported one-step folders take one step without guidance, others `evaluation.teacher_steps` with
    `evaluation.teacher_guidance`. images_per_second is of one worker.
    With a folder `out`, evaluation.json and evaluation_grid.png are written there, and the images into evaluation/: an
    evaluation that was broken off goes on where it was. evaluator: who does the work; None: this process.
    Raises UserError, before anything is sampled, for a folder, prompt file, reward, network or judge that is not there.
    """
    for folder in models.values():
        frame_of(config.model, folder)
    check_networks(config.evaluation)
    made = {name: how_to_sample(folder, config) for name, folder in models.items()}
    evaluator = evaluator or Evaluator(config)
    texts = texts_of(config)
    with waiting("the rewards, networks and the judge"):
        terms = evaluator.prepare()
    reference = compared_with(config, evaluator, say)
    measures_by = [terms_as_json(terms), config.evaluation.model_dump(mode="json", exclude={"workers", "judge"})]
    values, units, shown = {}, {}, {}
    picked = picked_of(len(texts))
    with folder_of(out) as root:
        for name, folder in models.items():
            images_by = [texts, config.run.seed, made[name], batch_of(config), config.model.model_dump(mode="json")]
            shards = shards_of(texts, batch_of(config))
            kept = Kept(root / name, shards, [*images_by, stamp_of(local(folder))], measures_by)
            evaluator.open(folder)
            units[name] = measured(kept, evaluator, name, reference, say)
            if config.evaluation.judge:
                with waiting(f"the judge of {name}"):
                    units[name] |= evaluator.judged(kept.images(list(range(len(texts)))))
            seconds = sum(kept.seconds(shard) for shard in range(len(shards)))
            shown[name] = from_pngs(kept.images(picked))
            values[name] = means(units[name]) | {"images_per_second": len(texts) / seconds}
            kept.drop_measures()
            say(f"evaluated {name} ({in_words(*made[name])}): {summary(values[name])}")
    result = {
        "prompts": len(set(texts)),
        "samples": len(texts),
        "models": values,
        "within": {name: intervals(one) for name, one in units.items()},
        "difference": compared(units),
        "metrics": about(list(next(iter(values.values()))), terms),
        "made": {name: in_words(*how) for name, how in made.items()},
        "grid": None,
    }
    if out is not None:
        result["grid"] = GRID
        write_grid(shown, [texts[i] for i in picked], out / GRID)
        with whole_file(out / JSON) as aside:
            aside.write_text(json.dumps(result, indent=2, allow_nan=False), encoding="utf-8")
    return result


@contextmanager
def folder_of(out: Path | None) -> Iterator[Path]:
    """Where the images go: beside the results, or nowhere that lasts."""
    if out is not None:
        yield out / IMAGES
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


def picked_of(count: int) -> list[int]:
    """The images of the grid, evenly spread."""
    shown = min(count, GRID_PROMPTS)
    return [i * count // shown for i in range(shown)]


def terms_as_json(terms: list) -> list:
    return [term.model_dump(mode="json") if hasattr(term, "model_dump") else asdict(term) for term in terms]


def compared_with(config: RunConfig, evaluator: Evaluates, say: Say) -> Gaussian | None:
    """What the Frechet distances are to."""
    settings = config.evaluation.features
    if settings is None:
        return None

    def features_of(parts: Iterator[list[bytes]], count: int) -> np.ndarray:
        ticker, found, done = Ticker(say, "features of the images to compare with", count), {}, 0
        for index, features in evaluator.each("features_of", ((part,) for part in parts)):
            found[index] = features
            done += len(features)
            ticker.tick(done)
        return np.concatenate([found[index] for index in sorted(found)])

    reference = reference_of(settings, features_of, say)
    fewest, size = min(reference.count, config.evaluation.samples), len(reference.mean)
    if fewest <= size:
        say(
            f"Frechet distance: {fewest:,} images are few for {size:,} features, and it falls with their number: "
            "compare it with distances of as many alone"
        )
    return reference


def measured(kept: Kept, evaluator: Evaluates, name: str, reference: Gaussian | None, say: Say) -> Units:
    """Have all shards of the model sampled and measured that are not yet, and say how far it is."""
    files = {shard: kept.has_images(shard) for shard in range(len(kept.shards))}
    found = {shard: one for shard in files if files[shard] and (one := kept.measured(shard)) is not None}
    left = [shard for shard in files if shard not in found]
    todo = [(shard, kept.shards[shard]) for shard in left]
    total = sum(len(numbers) for _, numbers in todo)
    if there := sum(len(kept.shards[shard]) for shard in files if files[shard]):
        say(f"{there:,} images of {name} are there already, in {kept.folder}")
    ticker, done = Ticker(say, f"samples of {name}", total), 0
    calls = ((numbers, kept.images(numbers) if files[shard] else None) for shard, numbers in todo)
    for index, made in evaluator.each("shard", calls):
        shard = left[index]
        if not files[shard]:
            kept.keep_images(shard, made.pngs, made.seconds)
        kept.keep_measures(shard, made.measured)
        found[shard] = made.measured
        for line in made.said:
            say(line)
        done += len(kept.shards[shard])
        ticker.tick(done)
    return joined([found[shard] for shard in sorted(found)], reference)


def compared(units: dict[str, Units]) -> dict[str, dict[str, float]]:
    """What the run ended with minus what it began with, of each measure that has an interval; {} unless both are
    there."""
    pair = pair_of(units)
    if pair is None:
        return {}
    began, ended = (units[name] for name in pair)
    return {key: asdict(difference) for key, difference in differences(began, ended).items()}


def in_words(steps: int, guidance_scale: float | None) -> str:
    return "one step" if steps == 1 else f"{steps} steps, guidance {guidance_scale:g}"


def summary(values: dict[str, float | None]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in values.items())


def evaluate_run(config: RunConfig, say: Say = print, evaluator: Evaluates | None = None) -> dict:
    """Evaluate a finished run: its pipeline as 'aligned' or 'distilled', where it started as 'base', and the teacher.

    A run has no base that starts from the teacher, as distillation mostly does, or from a network alone. Writes
    run/evaluation.json and run/evaluation_grid.png.
    """
    return evaluate(models_of(config, config.path / "pipeline", None), config, say, config.path, evaluator)


def models_of(config: RunConfig, pipeline: str | Path, against: str | Path | None) -> dict[str, str | Path]:
    start = local(config.model.generator, within=True) if config.model.generator and not against else None
    base = against or (start if start and not is_bare(start) else None)
    name = ENDED[0 if config.objective.reward_scale > 0 else 1]
    return ({BEGAN: base} if base else {}) | {name: pipeline, "teacher": config.model.teacher}


def evaluate_command(
    pipeline: str | Path,
    against: str | Path | None,
    config_path: Path | None,
    out: Path | None,
    settings: list[str],
    say: Say,
    joined: Callable[[], AbstractContextManager],
    placed: Callable[[RunConfig, Say], AbstractContextManager[Evaluates]],
) -> dict:
    """`dipp-ray evaluate`: a run's folder, a pipeline folder or a hub's id, by a run's configuration or the one given,
    with its overrides.

    Prints the table and writes evaluation.json, the grid and the images to `out`, by default the run's folder. Raises
    UserError that says what to give where configuration or folder cannot be told. joined: the cluster within, if it is
    needed. placed: the actors that work where RAY_ADDRESS names a cluster, or several are asked for.
    """
    run, home = run_of(pipeline), None
    if run is not None:
        home = None if out else run_in_store(home_of(pipeline) or "")
        config_path, out = config_path or run / "config.yaml", out or run
    if config_path is None:
        raise UserError(f"{pipeline} lies in no run's folder: give --config with its rewards and prompts")
    if out is None:
        raise UserError(f"{pipeline} lies in no run's folder: give --out for evaluation.json and the grid")
    config = load_config(config_path, settings)
    made_folder(out, "choose another --out")
    models = models_of(config, pipeline_of(pipeline), pipeline_of(against) if against else None)
    check_networks(config.evaluation)
    in_actors = config.evaluation.workers > 1 or "RAY_ADDRESS" in os.environ
    in_cluster = config.reward.app or in_actors  # a Serve application answers in its cluster alone
    with (
        joined() if in_cluster else nullcontext(),
        placed(config, say) if in_actors else nullcontext() as evaluator,
    ):
        result = evaluate(models, config, say, out, evaluator)
    rich.print(as_table(result))
    if home is not None:
        home.push()
    place = home.url if home is not None else out
    say(f"{place}/{JSON}, {place}/{GRID}, {place}/{IMAGES}")
    return result


def as_table(result: dict) -> Table:
    """The evaluation for a terminal: a row a measure, a column a model, and the difference where two are compared."""
    title = f"{result['samples']} samples of {result['prompts']} prompts, the same for each model; ± 95 % intervals"
    made = "; ".join(f"{name}: {how}" for name, how in result["made"].items())
    table = Table(title=title, caption=made)
    table.add_column("")
    for name in result["models"]:
        table.add_column(name, justify="right")
    if result["difference"]:
        began, ended = pair_of(result["models"]) or ("", "")
        table.add_column(f"{ended} − {began}", justify="right")
    arrows = {"higher": " ↑", "lower": " ↓"}
    for key, metric in result["metrics"].items():
        cells = [_cell(result, name, key) for name in result["models"]]
        if result["difference"]:
            difference = result["difference"].get(key)
            cells.append(signed(Difference(**difference)) if difference else "")
        unit = f" [{metric['unit']}]" if metric["unit"] else ""
        table.add_row(metric["label"] + arrows.get(metric["better"], "") + unit.replace("[", r"\["), *cells)
    return table


def _cell(result: dict, name: str, key: str) -> str:
    """A value; with its interval where no difference is shown, which says more."""
    value, within = result["models"][name][key], result["within"][name].get(key)
    plain = value is None or within is None or result["difference"]
    return number(value) if plain else with_interval(value, within)


def write_grid(shown: dict[str, Tensor], prompts: list[str], path: Path) -> None:
    """Rows of at most eight prompts; below each other the models, each cell captioned with model and prompt."""
    images, captions = [], []
    columns = min(GRID_COLUMNS, len(prompts))
    whole = len(prompts) - len(prompts) % columns
    for start in range(0, whole, columns):
        for name, some in shown.items():
            images.append(some[start : start + columns])
            captions += [f"{name}: {prompt}" for prompt in prompts[start : start + columns]]
    save_grid(torch.cat(images), path, columns, captions)
