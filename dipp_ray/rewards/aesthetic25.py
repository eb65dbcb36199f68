"""The aesthetic predictor v2.5 (discus0434 2024) from its published file: a head over SigLIP's image features."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import SiglipVisionModel

from dipp_ray.errors import UserError
from dipp_ray.rewards.clip import image_statistics
from dipp_ray.rewards.preprocess import normalise, resize
from dipp_ray.rewards.pretrained import load_pretrained, require_model
from dipp_ray.rewards.weights import read_checkpoint, require_file

FILE = "aesthetic_predictor_v2_5.pth"
ORIGIN, TOWER = "the aesthetic predictor v2.5", "google/siglip-so400m-patch14-384"
STATISTICS = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}  # SigLIP's own
LAYER = re.compile(r"^(.*\.)?(\d+)\.(weight|bias)$")
TEXT = ("text_model.", "logit_scale", "logit_bias")  # of a whole SiglipModel, which the score does not read


class Aesthetic25Reward(nn.Module):
    """r(x) = head(unit SigLIP image features); the prompt is ignored. Range: 1 to 10, 5.5 and more is good; frozen.

    The folder holds the predictor's file, and the SiglipModel or SiglipVisionModel beside it or in `siglip/`. Images
    are resized to the tower's square whatever their shape, as SigLIP's image processor does.
    """

    differentiable = True
    FILE = FILE

    def __init__(self, folder: str | Path):
        super().__init__()
        path = require_file(folder, FILE, ORIGIN)
        tower = tower_folder(folder)
        self.model = load_pretrained(SiglipVisionModel, tower, "SigLIP model", TEXT)
        self.mean, self.std = image_statistics(tower, STATISTICS)
        self.head = linear_layers(read_checkpoint(path), self.model.config.hidden_size, path)
        self.requires_grad_(False).eval()

    @staticmethod
    def check_folder(folder: str | Path) -> None:
        """Raise UserError where a file is missing; nothing is loaded."""
        require_file(folder, FILE, ORIGIN)
        image_statistics(tower_folder(folder), STATISTICS)

    def reward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] of any size -> rewards [B], in fp32 or better."""
        side = self.model.config.image_size
        pixels = normalise(resize(images, side, side), self.mean, self.std)
        features = self.model(pixel_values=pixels.to(self.model.dtype)).pooler_output
        unit = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
        score = self.head(unit.to(self.model.dtype)).squeeze(-1)
        return score.to(torch.promote_types(score.dtype, torch.float32))

    forward = reward


def linear_layers(weights: Mapping[str, torch.Tensor], width: int, source: Path) -> nn.Sequential:
    """Features [B, width] -> scores [B, 1]: the linear layers of a file in the order of their numbers, as they are.

    What stands between them in the file's numbering is dropout, which does nothing here. Raises UserError where keys or
    shapes are not those of such a chain from `width` to 1.
    """
    numbered: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in weights.items():
        found = LAYER.match(key)
        if found is None:
            raise UserError(f"{source} holds {key}, which is no layer of {ORIGIN}: give the original file")
        numbered.setdefault(int(found[2]), {})[found[3]] = value.float()
    layers, given = [], width
    for number in sorted(numbered):
        layer = numbered[number]
        weight = layer.get("weight")
        if weight is None or weight.ndim != 2 or weight.shape[1] != given or "bias" not in layer:
            shown = None if weight is None else list(weight.shape)
            raise UserError(
                f"{source}: layer {number} has weights {shown} behind {given} features: give the original file, and "
                f"the SigLIP model that it belongs to ({TOWER})"
            )
        linear = nn.Linear(given, len(weight), device="meta")
        linear.load_state_dict(layer, assign=True)
        layers.append(linear)
        given = len(weight)
    if not layers or given != 1:
        raise UserError(f"{source} ends with {given} scores an image, not one: give the original file")
    return nn.Sequential(*layers)


def tower_folder(folder: str | Path) -> Path:
    """Where the SigLIP model lies: `siglip/` in the folder, or the folder itself. Raises UserError if in neither."""
    inner = Path(folder) / "siglip"
    found = inner if inner.is_dir() else Path(folder)
    require_model(found, "SigLIP model", f"{TOWER}, in {inner} or beside the file of {ORIGIN}")
    return found
