"""Tiny real models on random weights, built offline, and reward classes for the configuration to name."""

import json
import os
import threading

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from dipp_ray.errors import CallError

PROMPTS = ["red circle", "blue square", "red square", "blue circle"]


def save_clip(folder, image_size=8, words=("red", "blue", "circle", "square"), seed=0):
    """A CLIPModel of two layers and width 32, with a tokenizer that has one piece a word."""
    torch.manual_seed(seed)
    pieces = ["<|startoftext|>", "<|endoftext|>", *(word + "</w>" for word in words), *"abcdefghijklmnopqrstuvwxyz"]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = []
    for word in words:  # byte-pair merges that build each word from its letters, left to right
        parts = [*word[:-1], word[-1] + "</w>"]
        left = parts[0]
        for part in parts[1:]:
            for piece in (left, part, left + part):
                vocab.setdefault(piece, len(vocab))
            merges.append((left, part))
            left += part
    tokenizer = CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)))
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **layers,
            "vocab_size": len(vocab),
            "max_position_embeddings": 16,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={**layers, "image_size": image_size, "patch_size": 2},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_pipeline(folder, seed=0):
    """A pipeline folder with nothing in it but a VAE: latents [1, 8, 8], images [3, 16, 16]."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=1,
        mid_block_add_attention=False,
        scaling_factor=0.5,
        shift_factor=0.1,
    )
    vae.save_pretrained(folder / "vae")
    (folder / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderKL"]}))
    return str(folder)


class Brightness(nn.Module):
    """Mean of the image. NaN where the prompt says so."""

    def reward(self, images, prompts):
        factor = [float("nan") if prompt == "nan" else 1.0 for prompt in prompts]
        return images.mean((1, 2, 3)) * images.new_tensor(factor)


class FromFolder(Brightness):
    """Takes its folder through `load`."""

    @classmethod
    def load(cls, folder):
        model = cls()
        model.folder = folder
        return model


class NoGradient:
    def reward(self, images, prompts):
        return images.detach().mean((1, 2, 3))


class WrongShape:
    def reward(self, images, prompts):
        return images.mean((2, 3))


class Nothing:
    pass


class ProcessId:
    """Says which process answered."""

    def reward(self, images, prompts):
        return torch.full((len(images),), float(os.getpid()), device=images.device)


class Never:
    """Does not answer."""

    def reward(self, images, prompts):
        threading.Event().wait()


class Picky(Brightness):
    """Refuses a whole batch for one prompt."""

    def reward(self, images, prompts):
        if "refuse" in prompts:
            raise CallError("refuse is no prompt")
        return super().reward(images, prompts)


class Raises(Brightness):
    """Is out of order."""

    def reward(self, images, prompts):
        raise RuntimeError("out of order")


class Slow(Brightness):
    """Takes a tenth of a second a batch."""

    def reward(self, images, prompts):
        threading.Event().wait(0.1)
        return super().reward(images, prompts)


class Steep(Brightness):
    """Finite, with a derivative that is not."""

    def reward(self, images, prompts):
        return super().reward(images, prompts) + (images - images.detach()).sum((1, 2, 3)).sqrt()
