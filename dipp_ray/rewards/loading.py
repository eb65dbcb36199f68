"""A reward model by the name that the configuration gives it."""

import importlib
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from dipp_ray.errors import UserError
from dipp_ray.rewards.terms import RewardTerm


class Reward(Protocol):
    """What every reward model is. Differentiable in the images, unless it is only ever held out."""

    def reward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] and B prompts -> rewards [B]; row i depends on image i and prompt i alone."""


def load_reward(term: RewardTerm) -> Reward:
    """The model of one term, frozen and in eval mode, on the CPU.

    `clip` is `ClipReward(folder)`. `package.module:Class` is `Class.load(folder)` where the class has a `load`, else
    `Class(folder)`, or `Class()` without a folder. Raises UserError where folder, class or method are missing.
    """
    check_term(term)
    if term.model == "clip":
        from dipp_ray.rewards.clip import ClipReward  # transformers takes a second to import

        return ClipReward(term.folder)
    model = _construct(reward_class(term), term)
    if not callable(getattr(model, "reward", None)):
        raise UserError(f"reward '{term.name}': {term.model} has no method reward(images, prompts): add it")
    return model.requires_grad_(False).eval() if isinstance(model, nn.Module) else model


def check_term(term: RewardTerm) -> None:
    """Raise UserError where folder or class of a term are missing; nothing is constructed."""
    if term.folder is not None and not Path(term.folder).is_dir():
        raise UserError(f"reward '{term.name}': there is no folder {term.folder}: correct reward.terms' folder")
    if term.model != "clip":
        reward_class(term)
    elif term.folder is None:
        raise UserError(f"reward '{term.name}': a clip reward needs the folder of its weights: set its folder")


def reward_class(term: RewardTerm) -> type:
    """The class that `package.module:Class` names. Raises UserError where there is none."""
    module, separator, name = term.model.partition(":")
    if not separator or not module or not name:
        raise UserError(f"reward '{term.name}': model '{term.model}' is neither clip nor package.module:Class")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UserError(f"reward '{term.name}': {error}: correct model, or install what it needs") from error
    except AttributeError:
        raise UserError(f"reward '{term.name}': module {module} has no class {name}: correct its model") from None


def _construct(kind: type, term: RewardTerm) -> Reward:
    make = getattr(kind, "load", kind)
    return make(term.folder) if term.folder is not None else make()
