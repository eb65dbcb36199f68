"""Pipelines of the sizes that people train, with random weights: SD 1.5, PixArt-XL/2, SDXL, and a CLIP ViT-B reward.

Networks and VAE have the published settings. Text encoders have the width that the network reads and one layer, for
embeddings are read from a file. Weights are written one by one: no model ever lies in memory.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor

from dipp_ray.checkpoints.tensors import DTYPES, bytes_of
from dipp_ray.models.hollow import Hollow

WORDS = ["a", "red", "blue", "cat", "dog", "house", "on", "the", "hill", "table"]
PROMPTS = ["a red cat", "a blue dog on the hill", "the house", "a dog on the table"]
UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
PIXART = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
    "sample_size": 64, "patch_size": 2, "cross_attention_dim": 1152, "caption_channels": 4096,
}  # fmt: skip
VAE = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SMALL = {"layers_per_block": 1, "transformer_layers_per_block": 1, "attention_head_dim": 4}
BETAS = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False, "steps_offset": 1,
}  # fmt: skip


def pipeline(name: str, folder: Path, small: bool = False) -> Path:
    """The pipeline sd15, pixart or sdxl in a folder, if it is not there yet. small: the same of few parameters."""
    if (folder / "model_index.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_diffusers_version": diffusers.__version__}
    dtype = torch.bfloat16 if name == "sdxl" else torch.float32
    if name == "pixart":
        settings = PIXART | ({"num_layers": 1, "num_attention_heads": 2} if small else {})
        settings |= {"cross_attention_dim": settings["num_attention_heads"] * settings["attention_head_dim"]}
        index["transformer"] = network("PixArtTransformer2DModel", settings, folder / "transformer", dtype)
        index["_class_name"] = "PixArtAlphaPipeline"
    else:
        settings = SDXL if name == "sdxl" else UNET
        if small:
            levels = len(settings.get("block_out_channels", VAE["block_out_channels"]))
            settings = settings | SMALL | {"block_out_channels": [32] * levels}
        index["unet"] = network("UNet2DConditionModel", settings, folder / "unet", dtype)
        index["_class_name"] = "StableDiffusionXLPipeline" if name == "sdxl" else "StableDiffusionPipeline"
    vae = VAE | ({"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1} if small else {})
    vae |= {"scaling_factor": 0.13025 if name == "sdxl" else 0.18215}
    index["vae"] = network("AutoencoderKL", vae, folder / "vae", torch.float32)
    diffusers.DDIMScheduler(**BETAS).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    index |= encoders(name, folder)
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))  # last: a folder is whole or has none
    return folder


def encoders(name: str, folder: Path) -> dict[str, list]:
    if name == "pixart":
        pieces = ["<pad>", "</s>", "<unk>", *("▁" + word for word in WORDS)]
        tokenizer = transformers.T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)
        tokenizer.save_pretrained(folder / "tokenizer")
        config = transformers.T5Config(
            vocab_size=len(pieces), d_model=4096, d_kv=8, d_ff=8, num_layers=1, num_heads=1
        )  # fmt: skip
        transformers.T5EncoderModel(config).save_pretrained(folder / "text_encoder")
        return {"tokenizer": ["transformers", "T5Tokenizer"], "text_encoder": ["transformers", "T5EncoderModel"]}
    found: dict[str, list] = {}
    for suffix, width in (("", 768), ("_2", 1280)) if name == "sdxl" else (("", 768),):
        kind = "CLIPTextModelWithProjection" if suffix else "CLIPTextModel"
        clip_tokenizer().save_pretrained(folder / f"tokenizer{suffix}")
        config = transformers.CLIPTextConfig(**clip_text(width), num_hidden_layers=1 + bool(name == "sdxl"))
        getattr(transformers, kind)(config).save_pretrained(folder / f"text_encoder{suffix}")
        found |= {
            f"tokenizer{suffix}": ["transformers", "CLIPTokenizer"],
            f"text_encoder{suffix}": ["transformers", kind],
        }
    if name == "sd15":
        found |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    else:
        found |= {"force_zeros_for_empty_prompt": True}
    return found


def clip_text(width: int, vocabulary: int = 0) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary or len(clip_tokenizer()), "hidden_size": width, "intermediate_size": 4 * width,
        "projection_dim": width, "num_attention_heads": width // 64, "max_position_embeddings": 77,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip


def clip_tokenizer() -> transformers.CLIPTokenizer:
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, **{word + "</w>": i + 2 for i, word in enumerate(WORDS)}}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def reward(folder: Path, small: bool = False) -> Path:
    """A CLIP of the size of ViT-B/32, 151 million parameters."""
    if (folder / "config.json").exists():
        return folder
    text = clip_text(512, 64 if small else 49408) | {"num_hidden_layers": 1 if small else 12, "num_attention_heads": 8}
    vision = (
        {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2} if small else {}
    )
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)
    torch.manual_seed(0)
    clip_tokenizer().save_pretrained(folder)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def network(kind: str, settings: dict[str, Any], folder: Path, dtype: torch.dtype) -> list[str]:
    """Write a network of diffusers with random weights, one weight in memory at a time; its entry of the index."""
    hollow = Hollow(getattr(diffusers, kind), settings, {})
    folder.mkdir(exist_ok=True)
    hollow.model.save_config(folder)
    state = hollow.model.state_dict()
    norms = {f"{name}.weight" for name, module in hollow.model.named_modules() if "Norm" in type(module).__name__}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in state.items():
        start, end = end, end + tensor.numel() * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "diffusion_pytorch_model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in weights(state, set(hollow.parameters), norms):
            file.write(bytes_of(value.to(dtype).contiguous()))
    return ["diffusers", kind]


def weights(state: dict[str, Tensor], parameters: set[str], norms: set[str]) -> Iterator[Tensor]:
    """Values under which signals neither grow nor fade; buffers are as their class computes them."""
    torch.manual_seed(0)
    for name, tensor in state.items():
        if name not in parameters:
            yield tensor
        elif name in norms:
            yield torch.ones(tensor.shape)
        elif tensor.dim() < 2:
            yield torch.zeros(tensor.shape)
        else:
            yield torch.randn(tensor.shape) / math.sqrt(math.prod(tensor.shape[1:]))
