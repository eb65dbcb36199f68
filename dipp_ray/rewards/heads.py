"""The head that ImageReward and the LAION aesthetic predictor share."""

import torch
from torch import nn


class LinearHead(nn.Module):
    """Features [B, width] -> scores [B]: linear layers without anything between them, as published.

    Both models were trained with dropout between some of these layers; its places are kept, empty, so that the keys of
    the published files (layers.0, 2, 4, 6 and 7) are the keys here. widths: four, of the layers between.
    """

    def __init__(self, width: int, widths: tuple[int, int, int, int]):
        super().__init__()
        a, b, c, d = widths
        self.layers = nn.Sequential(
            nn.Linear(width, a), nn.Identity(), nn.Linear(a, b), nn.Identity(), nn.Linear(b, c), nn.Identity(),
            nn.Linear(c, d), nn.Linear(d, 1),
        )  # fmt: skip

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features).squeeze(-1)
