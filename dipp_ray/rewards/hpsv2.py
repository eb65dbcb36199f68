"""Human Preference Score v2 and v2.1 (Wu et al. 2023, arXiv:2306.09341) from their published files."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ftfy
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from dipp_ray.errors import UserError
from dipp_ray.rewards.clip import CLIP_MEAN, CLIP_STD, CosineReward
from dipp_ray.rewards.preprocess import pad_to_square
from dipp_ray.rewards.tokenizers import load_tokenizer, require_tokenizer
from dipp_ray.rewards.weights import fill, read_checkpoint, rename, require_file

KEY = "state_dict"  # of the state dict in the file
TOKENIZER_ORIGIN = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class Sizes:
    """Of an open_clip model; those of ViT-H/14 by default. Its text ends with the token `eos`."""

    image: int = 224
    patch: int = 14
    vision_width: int = 1280
    vision_layers: int = 32
    vision_heads: int = 16
    text_width: int = 1024
    text_layers: int = 24
    text_heads: int = 16
    vocabulary: int = 49_408
    tokens: int = 77
    eos: int = 49_407
    features: int = 1024


VIT_H_14 = Sizes()

# Keys of open_clip -> keys of transformers' CLIPModel.
KEYS = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)
TRANSPOSED = ("visual.proj", "text_projection")  # open_clip multiplies from the right


class Hpsv2(CosineReward):
    """HPS v2: 100 cos(image, prompt), as its benchmark prints it, without the logit scale; frozen. About 20 to 35."""

    FILE = "HPS_v2_compressed.pt"

    def __init__(self, folder: str | Path, sizes: Sizes = VIT_H_14):
        path = require_file(folder, self.FILE, "HPSv2")
        tokenizer = load_tokenizer(CLIPTokenizer, folder, TOKENIZER_ORIGIN)
        if tokenizer.eos_token_id != sizes.eos or len(tokenizer) > sizes.vocabulary:
            raise UserError(
                f"the tokenizer in {folder} ends texts with token {tokenizer.eos_token_id} of {len(tokenizer)}, not "
                f"with {sizes.eos} of {sizes.vocabulary}: give the one of {TOKENIZER_ORIGIN}"
            )
        with torch.device("meta"):
            model = CLIPModel(clip_config(sizes))
        fill(model, dict(from_open_clip(read_checkpoint(path, KEY))), path)
        super().__init__(model, tokenizer, CLIP_MEAN, CLIP_STD, pad_to_square)

    def read(self, prompt: str) -> str:
        return clean(prompt)

    @classmethod
    def check_folder(cls, folder: str | Path) -> None:
        """Raise UserError where a file is missing; nothing is loaded."""
        require_file(folder, cls.FILE, "HPSv2")
        require_tokenizer(CLIPTokenizer, folder, TOKENIZER_ORIGIN)


class Hpsv21(Hpsv2):
    """HPS v2.1: the same network trained on more data; its scores are not those of v2."""

    FILE = "HPS_v2.1_compressed.pt"


def clean(prompt: str) -> str:
    """The text that open_clip's tokenizer reads of a prompt, before its byte pairs: typographic quotes made plain and
    broken encodings mended (ftfy), HTML's entities resolved, twice, white space made single.

    OpenAI's tokenizer in transformers does none of this, and a curly apostrophe is worth .6 of a score.
    """
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def from_open_clip(weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Keys and weights of transformers' CLIPModel from those of an open_clip model."""
    for key, weight in weights.items():
        if key == "attn_mask":  # the causal mask, a constant that some versions of open_clip wrote
            continue
        if key in TRANSPOSED:
            weight = weight.T
        name = rename(key, KEYS)
        if ".in_proj_" not in name:
            yield name, weight
            continue
        for projection, part in zip("qkv", weight.tensor_split(3), strict=True):
            yield name.replace("in_proj_", f"{projection}_proj."), part


def clip_config(sizes: Sizes) -> CLIPConfig:
    """The CLIPModel that computes what open_clip does: plain GELU (OpenAI's CLIP has quick GELU)."""
    return CLIPConfig(
        text_config={
            "hidden_size": sizes.text_width,
            "intermediate_size": 4 * sizes.text_width,
            "num_hidden_layers": sizes.text_layers,
            "num_attention_heads": sizes.text_heads,
            "vocab_size": sizes.vocabulary,
            "max_position_embeddings": sizes.tokens,
            "hidden_act": "gelu",
            "bos_token_id": sizes.eos - 1,
            "eos_token_id": sizes.eos,
            "pad_token_id": sizes.eos,
        },
        vision_config={
            "hidden_size": sizes.vision_width,
            "intermediate_size": 4 * sizes.vision_width,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": sizes.vision_heads,
            "image_size": sizes.image,
            "patch_size": sizes.patch,
            "hidden_act": "gelu",
        },
        projection_dim=sizes.features,
    )
