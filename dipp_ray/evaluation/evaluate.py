"""Models side by side on the same prompts and noises: a table, evaluation.json and a grid."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import rich
import torch
from rich.table import Table
from torch import Tensor

from dipp_ray.config import RunConfig, load_config
from dipp_ray.errors import UserError
from dipp_ray.evaluation.evaluator import Evaluates, Evaluator, batch_of, how_to_sample, texts_of
from dipp_ray.evaluation.folders import home_of, pipeline_of, run_in_store, run_of
from dipp_ray.evaluation.measure import (
    Units,
    about,
    differences,
    intervals,
    means,
)
from dipp_ray.hub.fetch import local
from dipp_ray.models.bare import is_bare
from dipp_ray.models.pipeline import frame_of
from dipp_ray.reporting.differences import Difference, signed, with_interval
from dipp_ray.reporting.grid import save_grid
from dipp_ray.reporting.pace import Ticker
from dipp_ray.reporting.progress import number
from dipp_ray.reporting.waiting import waiting
from dipp_ray.storage.aside import whole_file

Say = Callable[[str], None]
GRID_PROMPTS = 16
GRID_COLUMNS = 8
JSON, GRID = "evaluation.json", "evaluation_grid.png"
COMPARED = ("base", "aligned")


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
    `evaluation.teacher_guidance`.
    With a folder `out`, evaluation.json and evaluation_grid.png are written there. evaluator: who does the work; None:
    this process.
    Raises UserError, before anything is sampled, for a folder, prompt file, reward or judge that is not there.
    """
    for folder in models.values():
        frame_of(config.model, folder)
    evaluator = evaluator or Evaluator(config)
    texts = texts_of(config)
    with waiting("the rewards and the judge"):
        terms = evaluator.prepare()
    values, units, shown = {}, {}, {}
    picked = (
        [i * len(texts) // GRID_PROMPTS for i in range(GRID_PROMPTS)]
        if len(texts) > GRID_PROMPTS
        else list(range(len(texts)))
    )
    for name, folder in models.items():
        with waiting(f"the weights of {name}"):
            evaluator.open(folder)
        seconds = sampled(evaluator, name, len(texts), batch_of(config), say)
        with waiting(f"the measures of {name}"):
            units[name], shown[name], said = evaluator.measures(picked)
        for line in said:
            say(line)
        values[name] = means(units[name]) | {"images_per_second": len(texts) / seconds}
        say(f"evaluated {name} ({in_words(*how_to_sample(folder, config))}): {summary(values[name])}")
    result = {
        "prompts": len(set(texts)),
        "samples": len(texts),
        "models": values,
        "within": {name: intervals(one) for name, one in units.items()},
        "difference": compared(units),
        "metrics": about(list(next(iter(values.values()))), terms),
        "made": {name: in_words(*how_to_sample(folder, config)) for name, folder in models.items()},
        "grid": None,
    }
    if out is not None:
        result["grid"] = GRID
        write_grid(shown, [texts[i] for i in picked], out / GRID)
        with whole_file(out / JSON) as aside:
            aside.write_text(json.dumps(result, indent=2, allow_nan=False), encoding="utf-8")
    return result


def compared(units: dict[str, Units]) -> dict[str, dict[str, float]]:
    """Aligned minus base, of each measure that has an interval; {} where one of them is not there."""
    if not all(name in units for name in COMPARED):
        return {}
    base, aligned = (units[name] for name in COMPARED)
    return {key: asdict(difference) for key, difference in differences(base, aligned).items()}


def sampled(evaluator: Evaluates, name: str, count: int, batch: int, say: Say) -> float:
    """Have `count` images sampled, `batch` at a time, and say how far it is; returns the seconds that it took."""
    ticker, seconds = Ticker(say, f"samples of {name}", count), 0.0
    for start in range(0, count, batch):
        stop = min(count, start + batch)
        seconds += evaluator.sample(start, stop)
        ticker.tick(stop)
    return seconds


def in_words(steps: int, guidance_scale: float) -> str:
    return "one step" if steps == 1 else f"{steps} steps, guidance {guidance_scale:g}"


def summary(values: dict[str, float | None]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in values.items())


def evaluate_run(config: RunConfig, say: Say = print, evaluator: Evaluates | None = None) -> dict:
    """Evaluate a finished run: its pipeline as 'aligned', where it started as 'base', and the teacher.

    Distillation has no base, for it starts from the teacher, nor a run that starts from a network alone. Writes
    run/evaluation.json and run/evaluation_grid.png.
    """
    return evaluate(models_of(config, config.path / "pipeline", None), config, say, config.path, evaluator)


def models_of(config: RunConfig, pipeline: str | Path, against: str | Path | None) -> dict[str, str | Path]:
    start = local(config.model.generator, within=True) if config.model.generator and not against else None
    base = against or (start if start and not is_bare(start) else None)
    name = "aligned" if base or config.objective.reward_scale > 0 else "distilled"
    return ({"base": base} if base else {}) | {name: pipeline, "teacher": config.model.teacher}


def evaluate_command(
    pipeline: str | Path,
    against: str | Path | None,
    config_path: Path | None,
    out: Path | None,
    say: Say,
    connect: Callable,
) -> dict:
    """`dipp-ray evaluate`: a run's folder, a pipeline folder or a hub's id, by a run's configuration or the one given.

    Prints the table and writes evaluation.json and the grid to `out`, by default the run's folder. Raises UserError
    that says what to give where configuration or folder cannot be told. connect: joins the cluster, if it is needed.
    """
    run, home = run_of(pipeline), None
    if run is not None:
        home = None if out else run_in_store(home_of(pipeline) or "")
        config_path, out = config_path or run / "config.yaml", out or run
    if config_path is None:
        raise UserError(f"{pipeline} lies in no run's folder: give --config with its rewards and prompts")
    if out is None:
        raise UserError(f"{pipeline} lies in no run's folder: give --out for evaluation.json and the grid")
    config = load_config(config_path)
    if config.reward.app:
        connect()  # a Serve application answers in its cluster alone
    out.mkdir(parents=True, exist_ok=True)
    models = models_of(config, pipeline_of(pipeline), pipeline_of(against) if against else None)
    result = evaluate(models, config, say, out)
    rich.print(as_table(result))
    if home is not None:
        home.push()
    place = home.url if home is not None else out
    say(f"{place}/{JSON}, {place}/{GRID}")
    return result


def as_table(result: dict) -> Table:
    """The evaluation for a terminal: a row a measure, a column a model, and the difference where two are compared."""
    title = f"{result['samples']} samples of {result['prompts']} prompts, the same for each model; ± 95 % intervals"
    table = Table(title=title)
    table.add_column("")
    for name in [*result["models"], *(["aligned − base"] if result["difference"] else [])]:
        table.add_column(name, justify="right")
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
