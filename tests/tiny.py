"""Small random pipelines of the real classes, saved as folders: what the tests train, serve and export."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

PROMPTS = ["a bold zero", "a thin one", "a bold two", "a thin three", "a bold four"]
WORDS = ["a", "bold", "thin", "zero", "one", "two", "three", "four"]


def pixart_pipeline(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """PixArt at 8x8 with latents 1x8x8: layers of width 16."""
    torch.manual_seed(seed)
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *[("▁" + word, -1.0) for word in WORDS]]
    PixArtAlphaPipeline(
        tokenizer=T5Tokenizer(vocab=vocabulary, extra_ids=0),
        text_encoder=T5EncoderModel(
            T5Config(vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        ),
        vae=vae(),
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=1,
            out_channels=1,
            num_layers=layers,
            sample_size=8,
            patch_size=2,
            cross_attention_dim=16,
            caption_channels=16,
            norm_num_groups=8,
            interpolation_scale=1,
        ),
        scheduler=DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=2e-2, clip_sample=False),
    ).save_pretrained(folder)
    return folder


def sd_pipeline(folder: Path, seed: int = 0) -> Path:
    """Stable Diffusion's classes at 8x8: a two-level UNet of width 8."""
    torch.manual_seed(seed)
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, **{w + "</w>": i + 2 for i, w in enumerate(WORDS)}}
    text = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    StableDiffusionPipeline(
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16),
        text_encoder=CLIPTextModel(text),
        vae=vae(),
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=8,
            cross_attention_dim=16,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        sample_size=8,
    )


def prompt_file(path: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": PROMPTS}), path)
    return path
