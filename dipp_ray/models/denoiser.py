"""The networks of diffusers' pipelines behind one call: (x_t, t, embeds) -> output.

What differs between the families (argument names, learned sigma, SDXL's sizes) is decided here, once, by the class
of the network; nothing above this file knows which family it works with.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _pixart(network: Any, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
    size = network.config.sample_size
    conditions: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if network.use_additional_conditions:
        pixels = torch.full((len(x_t), 2), 8.0 * size, device=x_t.device, dtype=x_t.dtype)
        conditions = {"resolution": pixels, "aspect_ratio": pixels[:, :1] / pixels[:, 1:]}
    output = network(
        x_t,
        encoder_hidden_states=embeds.tokens,
        encoder_attention_mask=embeds.mask,
        timestep=t,
        added_cond_kwargs=conditions,
    ).sample
    return output[:, : x_t.shape[1]]  # the rest is the learned sigma, which one-step sampling does not read


def _unet(network: Any, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
    added = None
    if network.config.addition_embed_type == "text_time":
        pixels = 8.0 * network.config.sample_size
        time_ids = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]], device=x_t.device, dtype=x_t.dtype)
        added = {"text_embeds": embeds.pooled, "time_ids": time_ids.expand(len(x_t), -1)}
    return network(x_t, t, encoder_hidden_states=embeds.tokens, added_cond_kwargs=added).sample


# By class name, so that reading a folder's configuration needs no import of diffusers' classes.
CALLS: dict[str, Callable[[Any, Tensor, Tensor, PromptEmbeds], Tensor]] = {
    "PixArtTransformer2DModel": _pixart,
    "UNet2DConditionModel": _unet,
}


class Denoiser(nn.Module):
    """A network of one of the known classes. Weights keep their own dtype; the arithmetic runs in `compute`.

    With fp32 weights and `compute` bf16 the forward and backward run under autocast: master weights, gradients and
    optimiser state stay fp32 at every ZeRO stage, so that a checkpoint means the same whatever the precision.
    """

    network: Any  # a model of diffusers

    def __init__(self, network: nn.Module, compute: torch.dtype):
        super().__init__()
        self.network = network
        self.compute = compute
        self._call = CALLS[type(network).__name__]

    def forward(self, x_t: Tensor, t: Tensor, embeds: PromptEmbeds) -> Tensor:
        """The network's raw output [B, C, h, w] in fp32, for x_t [B, C, h, w], t [B] and embeds of B rows."""
        weights = next(self.network.parameters()).dtype
        # No cache of cast weights: it would keep a whole bf16 copy alive, which ZeRO 3 is there to avoid.
        with torch.autocast(x_t.device.type, self.compute, enabled=self.compute != weights, cache_enabled=False):
            return self._call(self.network, x_t.to(weights), t, embeds.to(x_t.device, weights)).float()
