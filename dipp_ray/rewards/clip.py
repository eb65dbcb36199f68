"""A CLIP model as a reward, in PickScore's form: logit_scale.exp() times the cosine of image and prompt."""

import json
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from dipp_ray.errors import UserError
from dipp_ray.rewards.preprocess import normalise, to_square

# The channel statistics that CLIP was trained with; a folder's preprocessor_config.json overrides them.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CACHED_PROMPTS = 16_384


class ClipReward(nn.Module):
    """r(x, c) = logit_scale.exp() cos(image features, text features), from a local folder; weights frozen.

    Text features are computed once for each distinct prompt, one prompt at a time and without padding, so that their
    bits do not depend on which prompts came together. The newest `CACHED_PROMPTS` are kept.
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        self.model, self.tokenizer = load_clip(folder)
        self.requires_grad_(False).eval()
        self.mean, self.std = image_statistics(folder)
        self._text: OrderedDict[str, torch.Tensor] = OrderedDict()

    def reward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] of any size, B prompts -> rewards [B], in fp32 or better."""
        features = image_features(self.model, images, self.mean, self.std)
        text = torch.stack([self._text_features(prompt) for prompt in prompts])
        return self.model.logit_scale.exp() * (features * text).sum(-1)

    forward = reward

    @torch.no_grad()
    def _text_features(self, prompt: str) -> torch.Tensor:
        if prompt in self._text:
            self._text.move_to_end(prompt)
        else:
            tokens = tokenize(self.tokenizer, [prompt], self.model)
            self._text[prompt] = text_features(self.model, tokens)[0]
            if len(self._text) > CACHED_PROMPTS:
                self._text.popitem(last=False)
        return self._text[prompt]

    def _apply(self, fn, recurse=True):
        self._text.clear()  # A move or a cast makes the cached features another model's.
        return super()._apply(fn, recurse)


def image_features(model: CLIPModel, images: torch.Tensor, mean, std) -> torch.Tensor:
    """Unit image features [B, D] of images [B, 3, H, W] in [0, 1], in fp32 or better."""
    pixels = normalise(to_square(images, model.config.vision_config.image_size), mean, std)
    return _unit(model.get_image_features(pixel_values=pixels.to(model.dtype)).pooler_output)


def text_features(model: CLIPModel, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    """Unit text features [B, D] of tokens as `tokenize` gives them, in fp32 or better."""
    return _unit(model.get_text_features(**tokens).pooler_output)


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str], model: CLIPModel) -> dict[str, torch.Tensor]:
    """Token ids and attention mask [B, L] on the model's device, padded to the longest, cut at the model's length."""
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    return {key: tokens[key].to(model.device) for key in ("input_ids", "attention_mask")}


def load_clip(folder: str | Path) -> tuple[CLIPModel, CLIPTokenizer]:
    """CLIPModel (safetensors, every weight present) and CLIPTokenizer of a local folder. Raises UserError."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"there is no CLIP model in {folder}: give a folder that CLIPModel.save_pretrained wrote")
    try:
        model, info = CLIPModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"the CLIP model in {folder} does not load: {' '.join(str(error).split())}") from error
    # transformers fills what is missing with random weights and only warns: such a reward would be noise.
    wrong = {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
    if wrong:
        raise UserError(f"the weights in {folder} are not those of its CLIP model: {wrong}")
    return model, tokenizer


def image_statistics(folder: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel mean and standard deviation of the folder's preprocessor_config.json; CLIP's where it is absent."""
    path = Path(folder) / "preprocessor_config.json"
    if not path.is_file():
        return CLIP_MEAN, CLIP_STD
    config = json.loads(path.read_text())
    return tuple(config.get("image_mean", CLIP_MEAN)), tuple(config.get("image_std", CLIP_STD))


def _unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
