"""A small open_clip model, and the same one as a folder that transformers' CLIPModel reads."""

from dataclasses import replace

import torch
from comparing import CLIP_VOCABULARY, clip_ids, randomise, save_clip_vocabulary
from open_clip_original import OpenClip
from torch.nn import functional as F
from transformers import CLIPModel

from dipp_ray.rewards.hpsv2 import VIT_H_14, clip_config, from_open_clip

SMALL = replace(
    VIT_H_14,
    image=8,
    patch=4,
    vision_width=24,
    vision_layers=2,
    vision_heads=2,
    text_width=16,
    text_layers=2,
    text_heads=2,
    vocabulary=len(CLIP_VOCABULARY),
    tokens=11,
    eos=len(CLIP_VOCABULARY) - 1,
    features=16,  # as wide as the text, as in the published model: a forgotten transposition has the right shape
)


def small_open_clip(seed: int = 0) -> OpenClip:
    model = OpenClip(SMALL).eval()
    randomise(model, seed)
    return model


def all_ids(prompts: list[str]) -> torch.Tensor:
    return torch.stack([clip_ids(prompt, SMALL.tokens) for prompt in prompts])


def centred(images: torch.Tensor, top: int) -> torch.Tensor:
    """Images [B, 3, 22, 16] -> [B, 3, 8, 8]: the short side to 8, then 8 of 11 rows.

    Three rows are too many: transformers' centre starts at row 1, torchvision's at 2.
    """
    return F.interpolate(images, size=(11, 8), mode="bicubic", antialias=True)[:, :, top : top + 8]


def save_as_clip(original: OpenClip, folder, activation: str) -> None:
    """A CLIPModel's folder with the weights of `original`. test_hpsv2.py shows that the key map is right."""
    config = clip_config(SMALL)
    config.text_config.hidden_act = config.vision_config.hidden_act = activation
    model = CLIPModel(config)
    model.load_state_dict(dict(from_open_clip(original.state_dict())))
    model.save_pretrained(folder)
    save_clip_vocabulary(folder)
