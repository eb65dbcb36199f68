"""A diffusers pipeline folder, read part by part: its family, its network. Never its code."""

import inspect
import json
from pathlib import Path

import torch
from torch import nn

from dipp_ray.config import ModelSection
from dipp_ray.diffusion.one_step import Convention, OneStep, generator_diffusion
from dipp_ray.diffusion.parameterisation import Parameterisation
from dipp_ray.errors import UserError
from dipp_ray.hub.fetch import local
from dipp_ray.hub.selection import configurations, weights_of
from dipp_ray.models.denoiser import DTYPES, Denoiser
from dipp_ray.models.families import Family, family_of
from dipp_ray.models.hollow import Hollow
from dipp_ray.models.json_files import index_of, read_object
from dipp_ray.models.vae_folder import find_vae

# Read beside the weights by whoever samples or trains on from an exported folder.
ONE_STEP_FILE = "one_step.json"
OUTPUT_SCALE = "output_scale"  # in it: by what the exported network's last layer is multiplied
ONE_STEP_KEY = "_one_step"  # the same in the scheduler's configuration; diffusers warns of no key that begins with _


def read_frame(
    folder: str | Path,
    family: str | None = None,
    resolution: tuple[int, int] | None = None,
    embedded_guidance: float | None = None,
) -> Family:
    """Read a pipeline's configuration files, of a folder or a hub's id, of which no weights are fetched.

    Raises UserError where it is no pipeline that can be trained.

    family: 'package.module:Class' of one that is not listed here. resolution: height and width in pixels.
    embedded_guidance: what a network that reads its guidance scale is told. Where they are None an exported
    folder's are those that it was trained with, and another's are its own.
    """
    folder = local(folder, configurations)
    index = index_of(folder)
    kind = family_of(str(index.get("_class_name")), folder, family)
    if kind.network_part not in index:
        raise UserError(f"{folder}: its model_index.json names no {kind.network_part} to train")
    network = read_object(folder / kind.network_part / "config.json", f"{folder}/{kind.network_part} is incomplete")
    network_class = kind.present_name(index[kind.network_part][1], network)
    if network_class not in kind.networks:
        raise UserError(f"{folder}: {network_class} is not supported; known are {', '.join(kind.networks)}")
    trained = one_step_of_folder(folder) or {}
    given = resolution or trained.get("resolution")
    frame = kind(
        folder,
        index | {kind.network_part: ["diffusers", network_class]},
        _completed(network, network_class),
        read_object(folder / "scheduler" / "scheduler_config.json", f"{folder}/scheduler is incomplete"),
        find_vae(folder),
        tuple(given) if given else None,
        trained.get("embedded_guidance") if embedded_guidance is None else embedded_guidance,
    )
    frame.check()
    return frame


def frame_of(model: ModelSection, folder: str | Path | None = None) -> Family:
    """The frame of the configured teacher, or of another folder that is read as it is."""
    return read_frame(folder or model.teacher, model.family, model.resolution, model.embedded_guidance)


def _completed(network: dict, network_class: str) -> dict:
    """A network's settings with its class's defaults where its config.json says nothing, as folders of old do."""
    import diffusers

    if not hasattr(diffusers, network_class):
        raise UserError(f"{network_class} is no class of the installed diffusers {diffusers.__version__}: upgrade it")
    parameters = inspect.signature(getattr(diffusers, network_class).__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty and not p.name.startswith("_")}
    return json.loads(json.dumps(defaults)) | network  # tuples become lists


def one_step_of_folder(folder: str | Path) -> dict | None:
    """{'t_star', 'input', ...} that an exported folder was trained with, or None for another pipeline.

    It stands in one_step.json, and in the scheduler's configuration, which diffusers' own save_pretrained keeps.
    Raises UserError where the two differ.
    """
    held = local(folder, configurations)
    path, scheduler = held / ONE_STEP_FILE, held / "scheduler" / "scheduler_config.json"
    beside = read_object(path, f"{folder} is no export") if path.exists() else None
    within = (
        read_object(scheduler, f"{folder}/scheduler is incomplete").get(ONE_STEP_KEY) if scheduler.exists() else None
    )
    if beside and within and beside != within:
        raise UserError(
            f"{folder}: {ONE_STEP_FILE} says {beside}, but its scheduler was made for {within}: export it anew"
        )
    return beside or within


def export_at(path: str | Path, part: str) -> tuple[Path, dict] | None:
    """The exported folder at `path`, or the one of which it is the network's folder or a file there, `part` being the
    name of that folder, with its one_step.json; None where it is neither."""
    path = Path(path)
    above = {part: path.parent}.get(path.name) or {part: path.parent.parent}.get(path.parent.name)
    for folder in (path, above):
        record = one_step_of_folder(folder) if folder else None
        if folder and record:
            return folder, record
    return None


def one_step_of(
    frame: Family, t_star: int, convention: Convention, prediction: Parameterisation | None = None
) -> OneStep:
    """The generator's reading; `prediction` is what its output means, None: the same as the teacher's."""
    return OneStep(generator_diffusion(frame.diffusion, prediction), t_star, convention)


def open_denoiser(folder: str | Path, frame: Family | None = None, weights: str = "fp32") -> tuple[Hollow, Family]:
    """The network of the pipeline in `folder` without its weights, to be filled from there, and how it is called.

    frame: how it is called; None: as the folder's own says. With it `folder` may hold the network alone (`bare`).
    Of a hub's id the network alone is fetched. What an export has multiplied the last layer by is taken back: the
    output means what one_step.json says.
    """
    from dipp_ray.models.bare import is_bare, open_bare
    from dipp_ray.models.components import open_model  # which imports transformers: slow, and a frame needs none

    framed = frame is not None
    frame = frame or read_frame(folder)
    folder = local(folder, weights_of(frame.network_part), within=framed)
    if framed and is_bare(folder):
        hollow = open_bare(folder, frame, DTYPES[weights])
    else:
        hollow = open_model(folder / frame.network_part, frame.network_class, DTYPES[weights])
    _, record = export_at(folder, frame.network_part) or (None, {})
    if (scale := record.get(OUTPUT_SCALE, 1.0)) != 1:
        assert frame.last_layer is not None, "it was exported so"
        hollow.multiply(frame.last_layer, 1 / scale)
    return hollow, frame


def load_denoiser(folder: str | Path, compute: str, weights: str = "fp32", frame: Family | None = None) -> Denoiser:
    """The network of the pipeline in `folder`, ready to be called; `compute` and `weights` are 'fp32' or 'bf16'.

    folder, frame: as `open_denoiser`.
    """
    hollow, frame = open_denoiser(folder, frame, weights)
    hollow.fill(lambda _: DTYPES[weights])
    return Denoiser(hollow.model, frame, DTYPES[compute], DTYPES[weights])


@torch.no_grad()
def scale_output(network: nn.Module, frame: Family, factor: float) -> None:
    """Multiply what a network gives by `factor`, in place: exact, and exactly undone, for a power of two."""
    if factor != 1:
        assert frame.last_layer is not None, "checked with the scheduler of the one step"
        for parameter in network.get_submodule(frame.last_layer).parameters():
            parameter.mul_(factor)


def same_network(first: Family, second: Family) -> None:
    """Raise UserError, with the first setting that differs, unless both folders hold networks of one architecture."""
    if first.network_class != second.network_class:
        raise UserError(
            f"{second.folder} holds a {second.network_class}, but the teacher {first.folder} a {first.network_class}: "
            "use a generator of the teacher's kind"
        )
    # Keys that the class does not know are left out, as are those that begin with '_'.
    known = [key for key in _completed({}, first.network_class) if key not in first.immaterial]
    key = next((key for key in known if first.network[key] != second.network[key]), None)
    if key is not None:
        raise UserError(
            f"{second.folder}: its {second.network_part} has {key}={second.network[key]}, but that of the teacher "
            f"{first.folder} {key}={first.network[key]}: use a generator of the teacher's kind"
        )


def device_of_this_process() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
