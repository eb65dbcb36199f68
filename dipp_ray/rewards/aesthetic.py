"""The LAION aesthetic predictor v2 (Schuhmann 2022, improved-aesthetic-predictor) from its published file."""

from pathlib import Path

import torch
from torch import nn

from dipp_ray.errors import UserError
from dipp_ray.rewards.clip import image_features, image_statistics, load_clip_model, require_clip
from dipp_ray.rewards.heads import LinearHead
from dipp_ray.rewards.preprocess import to_square_torchvision
from dipp_ray.rewards.weights import fill, read_checkpoint, require_file

FILE = "sac+logos+ava1-l14-linearMSE.pth"
ORIGIN = "the LAION aesthetic predictor v2"
WIDTHS = (1024, 128, 64, 16)


class AestheticReward(nn.Module):
    """r(x) = head(unit CLIP ViT-L/14 image features); the prompt is ignored. Range: about 1 to 10; frozen.

    The folder holds the predictor's file, and the CLIPModel (openai/clip-vit-large-patch14) beside it or in `clip/`.
    """

    differentiable = True

    def __init__(self, folder: str | Path, widths: tuple[int, int, int, int] = WIDTHS):
        super().__init__()
        path = require_file(folder, FILE, ORIGIN)
        clip = clip_folder(folder)
        self.model = load_clip_model(clip)
        self.model.text_model = nn.Identity()  # never read: a third of the memory
        self.mean, self.std = image_statistics(clip)
        with torch.device("meta"):
            self.head = LinearHead(self.model.config.projection_dim, widths)
        fill(self.head, read_checkpoint(path), path)
        self.requires_grad_(False).eval()

    @staticmethod
    def check_folder(folder: str | Path) -> None:
        """Raise UserError where a file is missing; nothing is loaded."""
        require_file(folder, FILE, ORIGIN)
        clip_folder(folder)

    def reward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] of any size -> rewards [B], in fp32 or better."""
        features = image_features(self.model, images, self.mean, self.std, to_square_torchvision)
        score = self.head(features.to(self.model.dtype))
        return score.to(torch.promote_types(score.dtype, torch.float32))

    forward = reward


def clip_folder(folder: str | Path) -> Path:
    """Where the CLIP model lies: `clip/` in the folder, or the folder itself. Raises UserError if in neither."""
    inner = Path(folder) / "clip"
    found = inner if inner.is_dir() else Path(folder)
    try:
        require_clip(found)
    except UserError as error:
        raise UserError(
            f"{error}; {ORIGIN} reads openai/clip-vit-large-patch14, in that folder or in {inner}"
        ) from None
    return found
