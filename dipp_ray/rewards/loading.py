"""A reward model by the name that the configuration gives it."""

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dipp_ray.errors import UserError
from dipp_ray.hub.fetch import local
from dipp_ray.hub.revisions import named_here
from dipp_ray.hub.selection import of_reward
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.storage.cache import is_remote
from dipp_ray.storage.weight_names import is_weights

if TYPE_CHECKING:  # what a person misspelt is said before torch is loaded
    import torch

# Imported when asked for: transformers takes a second.
MODELS = {
    "imagereward": "dipp_ray.rewards.imagereward:ImageReward",
    "hpsv2": "dipp_ray.rewards.hpsv2:Hpsv2",
    "hpsv2.1": "dipp_ray.rewards.hpsv2:Hpsv21",
    "pickscore": "dipp_ray.rewards.clip:ClipReward",
    "clip": "dipp_ray.rewards.clip:ClipReward",
    "clip-score": "dipp_ray.rewards.clip:ClipScore",
    "aesthetic": "dipp_ray.rewards.aesthetic:AestheticReward",
    "aesthetic-v2.5": "dipp_ray.rewards.aesthetic25:Aesthetic25Reward",
    "hpsv3": "dipp_ray.rewards.hpsv3:Hpsv3",
    "jpeg": "dipp_ray.rewards.jpeg:JpegReward",
    "server": "dipp_ray.rewards.server:ServerReward",
}
WITHOUT_FOLDER = ("jpeg", "server")


class Reward(Protocol):
    """What every reward model is. An attribute `differentiable`, a bool, says whether it has a gradient in the images;
    without it, it has. `elsewhere = True` says that its scores are computed outside this process."""

    def reward(self, images: "torch.Tensor", prompts: list[str]) -> "torch.Tensor":
        """Images [B, 3, H, W] in [0, 1] and B prompts -> rewards [B]; row i depends on image i and prompt i alone."""


def is_differentiable(model: Reward | type) -> bool:
    """Whether a reward model, or a class of them, has a gradient in the images."""
    return bool(getattr(model, "differentiable", True))


def load_reward(term: RewardTerm) -> Reward:
    """The model of one term, frozen and in eval mode, on the CPU.

    A class is loaded by `Class.load(folder)` where it has a `load`, else `Class(folder)`; without a folder, without it.
    Of a hub's id the class is given the folder in the cache, with what it reads: see `of_reward`, for which the class
    may say in an attribute FILE which file of weights is its own.
    Raises UserError where folder, files, class or method are missing.
    """
    from torch import nn

    check_term(term)
    model = _construct(reward_class(term), term)
    _require_method(model, term)
    return model.requires_grad_(False).eval() if isinstance(model, nn.Module) else model


def check_term(term: RewardTerm) -> None:
    """Raise UserError where folder, files or class of a term are missing; nothing is constructed.

    A class may say itself, in a static method check_folder(folder), what its folder must hold.
    """
    require_named(term)
    folder = _folder(term)
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"reward '{term.name}': there is no folder {term.folder}: correct its folder")
    kind = reward_class(term)
    if isinstance(kind, type) and not hasattr(kind, "load"):  # which, as a function, may make something else
        _require_method(kind, term)
    check_folder = getattr(kind, "check_folder", None)
    if check_folder is not None and folder is not None:
        check_folder(folder)


def _require_method(model: Reward | type, term: RewardTerm) -> None:
    if not callable(getattr(model, "reward", None)):
        raise UserError(f"reward '{term.name}': {term.model} has no method reward(images, prompts): add it")


def require_named(term: RewardTerm) -> None:
    """Raise UserError where a term's model is no name of one, or its folder is missing or one too many; nothing is
    imported."""
    where = f"reward '{term.name}'"
    _named(term)
    if term.model in MODELS and (term.folder is None) != (term.model in WITHOUT_FOLDER):
        if term.folder is None:
            raise UserError(f"{where}: model {term.model} needs the folder of its weights: set its folder")
        raise UserError(f"{where}: model {term.model} reads no folder: remove its folder")
    elsewhere = term.folder is None or is_remote(term.folder) or named_here(term.folder) is not None
    if not elsewhere and not Path(str(term.folder)).is_dir():
        raise UserError(f"{where}: there is no folder {term.folder}: correct its folder")


def reward_class(term: RewardTerm) -> type:
    """The class that a term's model names. Raises UserError where there is none."""
    module, name = _named(term)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"reward '{term.name}': {error}: correct model, or install what it needs") from error
    except Exception as error:  # whatever its author's code raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"reward '{term.name}': {module} does not import ({reason}): correct it") from error
    if not hasattr(found, name):
        raise UserError(f"reward '{term.name}': module {module} has no class {name}: correct its model")
    return getattr(found, name)


def _named(term: RewardTerm) -> tuple[str, str]:
    """Module and class of a term's model. Raises UserError where it names none."""
    module, separator, name = MODELS.get(term.model, term.model).partition(":")
    if separator and module and name:
        return module, name
    near = difflib.get_close_matches(term.model, MODELS, n=1)
    meant = f": did you mean {near[0]}?" if near else ""
    names = ", ".join(MODELS)
    raise UserError(
        f"reward '{term.name}': model '{term.model}' is neither package.module:Class nor one of {names}{meant}"
    )


def weights_of_term(term: RewardTerm) -> int:
    """Bytes of the weights that a term's model reads from its folder, as they lie there; 0 of one without a folder."""
    folder = _folder(term)
    if folder is None:
        return 0
    path = Path(folder)
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    chosen = of_reward(getattr(reward_class(term), "FILE", None))(names, None)
    return sum((path / name).stat().st_size for name in chosen if is_weights(name))


def _construct(kind: type, term: RewardTerm) -> Reward:
    if term.server is not None:
        return kind(term.server)
    make, folder = getattr(kind, "load", kind), _folder(term)
    return make(folder) if folder is not None else make()


def _folder(term: RewardTerm) -> str | None:
    """The term's folder on this machine: as it is written, or that of a hub's id in the cache."""
    if term.folder is None or named_here(term.folder) is None:
        return term.folder
    choice = of_reward(getattr(reward_class(term), "FILE", None))
    try:
        return str(local(term.folder, choice))
    except UserError as error:
        raise UserError(f"reward '{term.name}': {error}") from error
