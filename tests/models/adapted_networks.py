"""Tiny networks with an adapter that has moved, and what they make of a noise."""

import torch
from family_worlds import CPU, OBLONG, size

from dipp_ray.alignment.questions import generate
from dipp_ray.config import AdapterSection
from dipp_ray.models.adapters import add_adapter, trained_weights
from dipp_ray.models.pipeline import load_denoiser, read_frame
from dipp_ray.models.text import TextEncoder
from tiny_families import PROMPTS

# An alpha that is not the rank, so that one that is lost would be seen.
LORA = AdapterSection(rank=2, alpha=8)


def adapted(name, folder, settings=LORA, moved=0.1, resolution=OBLONG):
    """The family's frame, and its network with an adapter that has moved."""
    frame = read_frame(folder, resolution=resolution and size(name, resolution))
    network = load_denoiser(folder, "fp32", frame=frame)
    add_adapter(network.network, settings, frame.adapter_targets, 7, "generator")
    move(network, moved)
    return frame, network


@torch.no_grad()
def move(network, by):
    generator = torch.Generator().manual_seed(3)
    for name, parameter in trained_weights(network):
        if ".lora_B." in name:
            parameter.copy_(by * torch.randn(parameter.shape, generator=generator))


def x0_of(network, frame, folder, one_step, z):
    with torch.no_grad():
        return generate(network, one_step, z, TextEncoder(folder, CPU, frame=frame)(PROMPTS))


def noise(frame):
    return torch.randn(len(PROMPTS), *frame.latent_shape, generator=torch.Generator().manual_seed(1))
