"""The networks of diffusers' pipelines behind one call: (x_t, t, embeds) -> output.

What differs between the families stands in `families/`; nothing above this file knows which one it works with.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.models.families import Family

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Denoiser(nn.Module):
    """A network of a known family. Weights keep their own dtype; the arithmetic runs in `compute`.

    With fp32 weights and `compute` bf16 the forward and backward run under autocast: master weights, gradients and
    optimiser state stay fp32 at every ZeRO stage, so that a checkpoint means the same whatever the precision.
    """

    network: Any  # a model of diffusers

    def __init__(self, network: nn.Module, family: Family, compute: torch.dtype):
        super().__init__()
        self.network = network
        self.family = family
        self.compute = compute

    def forward(self, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        """The network's raw output [B, C, h, w] in fp32, for x_t [B, C, h, w], t [B] and embeds of B rows."""
        weights = next(self.network.parameters()).dtype
        # No cache of cast weights: it would keep a whole bf16 copy alive, which ZeRO 3 is there to avoid.
        with torch.autocast(x_t.device.type, self.compute, enabled=self.compute != weights, cache_enabled=False):
            return self.family.output(self.network, x_t.to(weights), t, embeds.to(x_t.device, weights)).float()
