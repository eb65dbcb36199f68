"""The networks of diffusers' pipelines behind one call: (x_t, t, embeds) -> output.

What differs between the families stands in `families/`; nothing above this file knows which one it works with.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.models.families import Family
from dipp_ray.role_settings import NetworkRoleSection

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Denoiser(nn.Module):
    """A network of a known family. Weights keep their own dtype; the arithmetic runs in `compute`.

    With fp32 weights and `compute` bf16 the forward and backward run under autocast: master weights, gradients and
    optimiser state stay fp32 at every ZeRO stage, so that a checkpoint means the same whatever the precision.
    weights: the dtype in which it is given its inputs, that of its weights but for frozen ones (`kept_in`).
    """

    network: Any  # a model of diffusers

    def __init__(
        self,
        network: nn.Module,
        family: Family,
        compute: torch.dtype,
        weights: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.network = network
        self.family = family
        self.compute, self.weights = compute, weights
        self.layout = torch.preserve_format

    def run_as(self, role: NetworkRoleSection) -> "Denoiser":
        """Itself, with the layout and the compiler that a role's settings say: the same within rounding."""
        if role.channels_last:
            self.layout = torch.channels_last
        if role.compile:
            self.network.compile()
        return self

    @torch.no_grad()
    def lay_out(self, trained: bool = True) -> "Denoiser":
        """Itself, with weights in the layout of its input: a convolution gives what either of the two has.

        Of a network that is trained those alone that are frozen: DeepSpeed and checkpoints know the others as they are.
        """
        if self.layout == torch.channels_last:
            for parameter in self.network.parameters():
                if parameter.dim() == 4 and not (trained and parameter.requires_grad):
                    parameter.data = parameter.data.contiguous(memory_format=self.layout)
        return self

    def forward(self, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        """The network's raw output [B, C, h, w] in fp32, for x_t [B, C, h, w], t [B] and embeds of B rows."""
        # No cache of cast weights: it would keep a whole bf16 copy alive, which ZeRO 3 is there to avoid.
        with torch.autocast(x_t.device.type, self.compute, enabled=self.compute != self.weights, cache_enabled=False):
            embeds = embeds.to(x_t.device, self.weights)
            x_t = x_t.to(self.weights, memory_format=self.layout)
            return self.family.output(self.network, x_t, t, embeds).float()
