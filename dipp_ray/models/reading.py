"""The one place where it is settled how a run's generator is read: t*, its input, and what its output means.

What a person wrote comes first, then the one_step.json of an exported folder or the table of published generators,
then what follows from the teacher. The settled values are what a run records.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipp_ray.config import ModelSection, RunConfig
from dipp_ray.diffusion.one_step import OneStep, generator_diffusion, same_reading
from dipp_ray.diffusion.parameterisation import Parameterisation
from dipp_ray.diffusion.schedule import FlowSchedule
from dipp_ray.errors import UserError
from dipp_ray.hub.fetch import local
from dipp_ray.hub.selection import configurations
from dipp_ray.models.bare import is_bare
from dipp_ray.models.families import FAMILIES, Family
from dipp_ray.models.families.published import Published
from dipp_ray.models.pipeline import export_at, frame_of, one_step_of, read_frame, same_network
from dipp_ray.models.published import published

UNSAID = "neither its folder nor docs/generators.md says how it is read"


@dataclass(frozen=True)
class _Said:
    """What the generator's own folder or name says; None: nothing."""

    t_star: int | None = None
    input: Any = None
    prediction: Parameterisation | None = None


def settled(config: RunConfig) -> RunConfig:
    """The configuration with t_star, input and prediction filled in; itself where they are. Raises UserError."""
    return config.model_copy(update={"model": settle(config.model, frame_of(config.model))})


def settle(model: ModelSection, frame: Family) -> ModelSection:
    """The section with t_star, input and prediction filled in, from JSON files and names alone.

    `frame` is the teacher's. `prediction` becomes `teacher` where it means what the teacher's does, so that what was
    written out and what was left out are one trajectory. Raises UserError, in one sentence, where a value is neither
    given nor known, or a known generator belongs to another family of teachers.
    """
    entry = published(model.generator) if model.generator else None
    if entry is not None:
        _of_family(entry, model, frame)
    folder = folder_of(model)
    if folder is not None and not is_bare(folder):
        same_network(frame, frame_of(model, folder))
    said = _said(model, entry, frame)
    prediction = said.prediction if model.prediction is None else prediction_of(model)
    diffusion = generator_diffusion(frame.diffusion, prediction)
    flow = isinstance(diffusion.schedule, FlowSchedule)
    t_star = said.t_star if model.t_star is None else model.t_star
    convention = model.input or said.input
    if t_star is None and flow:
        t_star = diffusion.schedule.num_timesteps
    if convention is None and (flow or model.generator is None):
        convention = "sigma"  # of a flow they are one
    missing = [key for key, value in (("t_star", t_star), ("input", convention)) if value is None]
    if missing:
        raise UserError(_asks(model, entry, frame, " and ".join(f"model.{key}" for key in missing)))
    same = same_reading(frame.diffusion, diffusion)
    return model.model_copy(
        update={"t_star": t_star, "input": convention, "prediction": "teacher" if same else diffusion.kind}
    )


def one_step_of_model(frame: Family, model: ModelSection) -> OneStep:
    """How the configured generator is read, `frame` being the teacher's. Raises UserError as `settle`."""
    model = settle(model, frame)
    assert model.t_star is not None and model.input is not None, "settled"
    return one_step_of(frame, model.t_star, model.input, prediction_of(model))


def recorded(config: RunConfig) -> RunConfig:
    """A run's own config.yaml, which is written settled; before `prediction` was a setting it was the teacher's."""
    model = config.model
    return config.model_copy(update={"model": model.model_copy(update={"prediction": model.prediction or "teacher"})})


def prediction_of(model: ModelSection) -> Parameterisation | None:
    """What the settings say that the generator's output means; None: what the teacher's means."""
    return None if model.prediction == "teacher" else model.prediction


def exported_reading(model: ModelSection, frame: Family) -> _Said | None:
    """What an exported folder says of itself, or None where the generator is none.

    Where it names no prediction, its output means what the scheduler that it was exported with says: its teacher's.
    """
    folder = folder_of(model)
    export = export_at(folder, frame.network_part) if folder is not None else None
    if export is None:
        return None
    whole, record = export
    prediction = record.get("prediction")
    if prediction is None and not is_bare(whole):
        prediction = read_frame(whole, model.family).diffusion.kind
    return _Said(record.get("t_star"), record.get("input"), prediction)


def folder_of(model: ModelSection) -> Path | None:
    """Where the starting generator lies on this machine; of a hub's id its configurations alone, or its file."""
    return None if model.generator is None else local(model.generator, configurations, within=True)


def _said(model: ModelSection, entry: Published | None, frame: Family) -> _Said:
    exported = exported_reading(model, frame)
    if exported is not None:
        return exported
    if entry is None or entry.why_not is not None:
        return _Said()
    return _Said(entry.t_star, entry.input, entry.prediction)


def _of_family(entry: Published, model: ModelSection, frame: Family) -> None:
    pipelines = [name for kind in FAMILIES if kind.__name__ == entry.family for name in kind.pipelines]
    if frame.pipeline_class not in pipelines:
        raise UserError(
            f"model.generator={model.generator} is {entry.name}, a generator of {' or '.join(pipelines)}, but the "
            f"teacher {frame.folder} is a {frame.pipeline_class}: take its own base as teacher"
        )


def _asks(model: ModelSection, entry: Published | None, frame: Family, keys: str) -> str:
    if model.generator is None:
        last = frame.diffusion.schedule.num_timesteps - 1
        return (
            f"{keys} is required where the generator starts as the teacher, which is read at no one time: 1 to {last}"
        )
    if entry is not None and entry.why_not is not None:
        return f"model.generator={model.generator} is {entry.name}, of which {keys} is not known: {entry.why_not}"
    return f"model.generator={model.generator}: {UNSAID}: give {keys}"
