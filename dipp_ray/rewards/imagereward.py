"""ImageReward v1.0 (Xu et al. 2023, arXiv:2304.05977) from its published file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from dipp_ray.errors import UserError
from dipp_ray.rewards.clip import CLIP_MEAN, CLIP_STD
from dipp_ray.rewards.heads import LinearHead
from dipp_ray.rewards.preprocess import normalise, to_square_torchvision
from dipp_ray.rewards.prompt_cache import PromptCache
from dipp_ray.rewards.tokenizers import load_tokenizer, require_tokenizer
from dipp_ray.rewards.weights import fill, read_checkpoint, rename, require_file

FILE = "ImageReward.pt"
ORIGIN, TOKENIZER_ORIGIN = "ImageReward v1.0", "bert-base-uncased"
# Of the head's output on the authors' data: scores are standardised with them.
SCORE_MEAN, SCORE_STD = 0.16717362830052426, 1.0333394966054072


@dataclass(frozen=True)
class Sizes:
    """Of the BLIP vision tower, the text encoder that attends to it, and the head; the published ones by default."""

    image: int = 224
    patch: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    vocabulary: int = 30_524
    positions: int = 512
    tokens: int = 35
    head: tuple[int, int, int, int] = (1024, 128, 64, 16)


V1 = Sizes()

# Keys of the file -> keys of this module, in transformers' names.
KEYS = (
    (r"^mlp\.", "head."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.", "vision."),
    (r"^vision\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^vision\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^vision\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^vision\.norm\.", "vision.post_layernorm."),
    (r"^vision\.blocks\.(\d+)\.", r"vision.encoder.layers.\1."),
    (r"^(vision\..*)\.norm([12])\.", r"\1.layer_norm\2."),
    (r"^(vision\..*)\.attn\.proj\.", r"\1.self_attn.projection."),
    (r"^(vision\..*)\.attn\.qkv\.", r"\1.self_attn.qkv."),
)
# What the score does not read: BLIP's contrastive projections, and a constant.
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


class ImageReward(nn.Module):
    """r(x, c) = (head(h) - mean) / std, h the text encoder's first output, which attends to the image; frozen.

    Range: about -2.5 to 2. Prompts are cut or padded to 35 tokens, as the original does, so that a row does not depend
    on its companions. Only tokens are kept from call to call: every layer of the text encoder reads the image.
    """

    differentiable = True

    def __init__(self, folder: str | Path, sizes: Sizes = V1):
        super().__init__()
        self.sizes = sizes
        path = require_file(folder, FILE, ORIGIN)
        self.tokenizer = load_tokenizer(BertTokenizer, folder, TOKENIZER_ORIGIN)
        if len(self.tokenizer) > sizes.vocabulary:
            raise UserError(f"the tokenizer in {folder} has too many tokens: give the one of {TOKENIZER_ORIGIN}")
        with torch.device("meta"):
            self.vision = BlipVisionModel(_vision_config(sizes))
            self.text = BlipTextModel(_text_config(sizes), add_pooling_layer=False)
            self.head = LinearHead(sizes.text_width, sizes.head)
        weights = read_checkpoint(path)
        fill(self, {rename(key, KEYS): weights[key] for key in weights if not key.startswith(UNUSED)}, path)
        self.cache = PromptCache()

    @staticmethod
    def check_folder(folder: str | Path) -> None:
        """Raise UserError where a file is missing; nothing is loaded."""
        require_file(folder, FILE, ORIGIN)
        require_tokenizer(BertTokenizer, folder, TOKENIZER_ORIGIN)

    def reward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] of any size, B prompts -> rewards [B], in fp32 or better."""
        pixels = normalise(to_square_torchvision(images, self.sizes.image), CLIP_MEAN, CLIP_STD)
        patches = self.vision(pixel_values=pixels.to(self.vision.dtype)).last_hidden_state
        ids, mask = self.cache.stack(prompts, self._tokens).unbind(1)
        # Not as a decoder: the text is read in both directions, and only attends to the image besides.
        hidden = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=patches, is_decoder=False
        ).last_hidden_state
        score = self.head(hidden[:, 0])
        return (score.to(torch.promote_types(score.dtype, torch.float32)) - SCORE_MEAN) / SCORE_STD

    forward = reward

    def _tokens(self, prompt: str) -> torch.Tensor:
        """Token ids and attention mask, [2, tokens]."""
        tokens = self.tokenizer(prompt, padding="max_length", truncation=True, max_length=self.sizes.tokens)
        return torch.tensor([tokens["input_ids"], tokens["attention_mask"]], device=self.vision.device)


def _vision_config(sizes: Sizes) -> BlipVisionConfig:
    return BlipVisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        image_size=sizes.image,
        patch_size=sizes.patch,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
    )


def _text_config(sizes: Sizes) -> BlipTextConfig:
    return BlipTextConfig(
        hidden_size=sizes.text_width,
        intermediate_size=4 * sizes.text_width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        encoder_hidden_size=sizes.vision_width,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=sizes.positions,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        is_decoder=True,  # or it would be built without cross-attention
        bos_token_id=None,
        eos_token_id=None,
        sep_token_id=None,
        pad_token_id=0,
    )
