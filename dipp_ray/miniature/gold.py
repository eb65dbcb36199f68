"""The gold reward: the stated annotator of the miniature, which no training ever sees directly."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dipp_ray.errors import UserError
from dipp_ray.miniature.digits import Scans, parse_prompts
from dipp_ray.miniature.stages import Progress, seeded
from dipp_ray.reporting.pace import Ticker

LOWEST_LOG_PROBABILITY = -5.0
CRISPNESS_WEIGHT = 16.0
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class GoldRecipe:
    seed: int = 13
    steps: int = 900
    batch: int = 128
    lr: float = 2e-3
    width: int = 32
    shift: float = 0.7  # deviation of a scan's shift in each direction, in pixels
    noise: float = 0.15  # largest deviation of the pixels' noise


class DigitClassifier(nn.Module):
    """Logits [B, 10] of grey images [B, 1, 8, 8] in [0, 1]. Smooth activations, so that its gradient has no jumps."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * width, 64),
            nn.SiLU(),
            nn.Linear(64, 10),
        )

    def forward(self, grey: Tensor) -> Tensor:
        return self.layers(2 * grey - 1)


def train_classifier(scans: Scans, recipe: GoldRecipe, progress: Progress) -> DigitClassifier:
    """Fit to the scans, each time shifted and noisy anew."""
    with seeded(recipe.seed):
        classifier = DigitClassifier(recipe.width)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=recipe.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=recipe.steps)
    ticker = Ticker(progress, "miniature: gold classifier step", recipe.steps)
    for step in range(1, recipe.steps + 1):
        rows = torch.randint(len(scans), (recipe.batch,), generator=generator)
        grey = shifted(scans.images[rows, :1], recipe.shift, generator)
        level = recipe.noise * torch.rand(recipe.batch, 1, 1, 1, generator=generator)
        grey = (grey + level * torch.randn(grey.shape, generator=generator)).clamp(0, 1)
        loss = F.cross_entropy(classifier(grey), scans.digits[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        ticker.tick(step, f"loss {loss.item():.3f}")
    return classifier.eval().requires_grad_(False)


def shifted(grey: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Images [B, 1, H, W] moved by Gaussian fractions of pixels; what comes in at an edge is black."""
    batch, _, height, width = grey.shape
    move = deviation * torch.randn(batch, 2, generator=generator)
    maps = torch.eye(2, 3).repeat(batch, 1, 1)
    maps[:, :, 2] = 2 * move / torch.tensor([width, height])  # affine_grid measures the image from -1 to 1
    grid = F.affine_grid(maps, list(grey.shape), align_corners=False)
    return F.grid_sample(grey, grid, align_corners=False)


class GoldReward(nn.Module):
    """max(-5, log p(prompted digit | image)) - 16 mean(u (1 - u)) over the pixels u in [0, 1]: legible and crisp.

    p is an independent classifier's, fitted to the train part of the scans.
    """

    def __init__(self, classifier: DigitClassifier):
        super().__init__()
        self.classifier = classifier

    def reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Images [B, 3, 8, 8] in [0, 1] and their B prompts -> rewards [B]; differentiable in the images."""
        grey = images.mean(dim=1, keepdim=True)
        digits = parse_prompts(prompts)[:, 0].to(images.device)
        log_probability = self.classifier(grey).log_softmax(dim=1).gather(1, digits[:, None])[:, 0]
        greyness = (images * (1 - images)).mean(dim=(1, 2, 3))
        return log_probability.clamp_min(LOWEST_LOG_PROBABILITY) - CRISPNESS_WEIGHT * greyness

    forward = reward

    def save(self, folder: Path, recipe: GoldRecipe) -> None:
        """Weights as safetensors and the recipe as JSON in `folder`."""
        save_file(self.classifier.state_dict(), folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(asdict(recipe), indent=2) + "\n")

    @staticmethod
    def load(folder: str | Path) -> "GoldReward":
        """From a folder that `save` wrote, frozen and in eval mode. Raises UserError where it is none."""
        folder = Path(folder)
        for name in (WEIGHTS, CONFIG):
            if not (folder / name).is_file():
                raise UserError(f"{folder} holds no gold reward: {name} is missing; build the miniature again")
        classifier = DigitClassifier(json.loads((folder / CONFIG).read_text())["width"])
        classifier.load_state_dict(load_file(folder / WEIGHTS))
        return GoldReward(classifier).eval().requires_grad_(False)


@torch.no_grad()
def classifier_accuracy(classifier: DigitClassifier, scans: Scans) -> float:
    """Share in [0, 1] of the scans whose digit the classifier reads."""
    return (classifier(scans.images[:, :1]).argmax(dim=1) == scans.digits).double().mean().item()
