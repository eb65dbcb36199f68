"""A diffusers pipeline folder, read part by part: its frame, its network, its text encoder. Never its code."""

import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dipp_ray.diffusion.one_step import Convention, OneStep
from dipp_ray.diffusion.parameterisation import PARAMETERISATIONS
from dipp_ray.diffusion.process import Diffusion
from dipp_ray.diffusion.schedule import FlowSchedule, VPSchedule
from dipp_ray.errors import UserError
from dipp_ray.models.denoiser import CALLS, DTYPES, Denoiser
from dipp_ray.models.encoders import ENCODERS


@dataclass(frozen=True)
class PipelineFrame:
    """What a pipeline folder says without loading its weights."""

    folder: Path
    pipeline_class: str
    network_part: str  # 'transformer' or 'unet'
    network_class: str
    latent_shape: tuple[int, int, int]  # C, h, w
    diffusion: Diffusion
    network: dict = field(repr=False, hash=False)  # the network's config.json


def read_frame(folder: str | Path) -> PipelineFrame:
    """Read a pipeline folder's configuration files. Raises UserError where it is no pipeline that can be trained."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give a diffusers pipeline folder (one with model_index.json)")
    index = _json(folder / "model_index.json", f"{folder} is no diffusers pipeline")
    pipeline_class = index.get("_class_name")
    if pipeline_class not in ENCODERS:
        raise UserError(
            f"{folder}: pipelines of class {pipeline_class} are not supported; known are {', '.join(ENCODERS)}"
        )
    part = next((name for name in ("transformer", "unet") if name in index), None)
    if part is None:
        raise UserError(f"{folder}: its model_index.json names neither a transformer nor a unet to train")
    network_class = index[part][1]
    if network_class not in CALLS:
        raise UserError(f"{folder}: {network_class} is not supported; known are {', '.join(CALLS)}")
    network = _json(folder / part / "config.json", f"{folder}/{part} is incomplete")
    size = network["sample_size"]
    return PipelineFrame(
        folder,
        pipeline_class,
        part,
        network_class,
        (network["in_channels"], size, size),
        _diffusion(folder, network_class),
        network,
    )


def _diffusion(folder: Path, network_class: str) -> Diffusion:
    from diffusers import DDPMScheduler

    config = _json(folder / "scheduler" / "scheduler_config.json", f"{folder}/scheduler is incomplete")
    if config["_class_name"].startswith("FlowMatch"):
        return Diffusion(FlowSchedule(config["num_train_timesteps"]), "flow_prediction")
    kind = config.get("prediction_type", "epsilon")
    if kind not in PARAMETERISATIONS:
        raise UserError(f"{folder}: prediction type {kind} is not supported; known are {', '.join(PARAMETERISATIONS)}")
    # DDPMScheduler computes the betas of every VP scheduler's configuration; the product is taken again in fp64.
    return Diffusion(VPSchedule((1 - DDPMScheduler.from_config(config).betas.double()).cumprod(0)), kind)


def _json(path: Path, otherwise: str) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{otherwise}: {path.name} is missing") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{otherwise}: {path.name} is not JSON ({error})") from None


def one_step_of(frame: PipelineFrame, t_star: int, convention: Convention) -> OneStep:
    return OneStep(frame.diffusion, t_star, convention)


def load_denoiser(folder: str | Path, compute: str, weights: str = "fp32") -> Denoiser:
    """The pipeline's network, ready to be called; `compute` and `weights` are 'fp32' or 'bf16'."""
    import diffusers

    frame = read_frame(folder)
    network_class = getattr(diffusers, frame.network_class)
    network = network_class.from_pretrained(
        frame.folder,
        subfolder=frame.network_part,
        torch_dtype=DTYPES[weights],
        use_safetensors=True,
        low_cpu_mem_usage=False,
    )
    return Denoiser(network, DTYPES[compute])


def same_network(first: PipelineFrame, second: PipelineFrame) -> None:
    """Raise UserError, with the first setting that differs, unless both folders hold networks of one architecture."""
    if first.network_class != second.network_class:
        raise UserError(
            f"{second.folder} holds a {second.network_class}, but the teacher {first.folder} a {first.network_class}: "
            "use a generator of the teacher's kind"
        )
    one, other = _settings(first), _settings(second)
    key = next((key for key in one if one[key] != other[key]), None)
    if key is not None:
        raise UserError(
            f"{second.folder}: its {second.network_part} has {key}={other[key]}, but that of the teacher "
            f"{first.folder} {key}={one[key]}: use a generator of the teacher's kind"
        )


def _settings(frame: PipelineFrame) -> dict:
    """All settings of the frame's network: older folders leave out what is the class's default, exported ones do not.

    Keys that the class does not know are left out, as are those that begin with '_'.
    """
    import diffusers

    parameters = inspect.signature(getattr(diffusers, frame.network_class).__init__).parameters.values()
    settings = {p.name: p.default for p in parameters if p.default is not p.empty and not p.name.startswith("_")}
    given = {key: value for key, value in frame.network.items() if key in settings}
    return json.loads(json.dumps(settings | given))  # tuples become lists


def device_of_this_process() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
