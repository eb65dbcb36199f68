"""CLIP models as rewards: the cosine of image and prompt, in PickScore's form and as the CLIP score."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from dipp_ray.errors import UserError
from dipp_ray.hub.fetch import local
from dipp_ray.hub.selection import of_reward
from dipp_ray.rewards.preprocess import normalise, to_square
from dipp_ray.rewards.pretrained import load_pretrained, require_model
from dipp_ray.rewards.prompt_cache import PromptCache
from dipp_ray.rewards.tokenizers import load_tokenizer, require_tokenizer

# The channel statistics that CLIP was trained with; those of a folder's image processor override them.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
STATISTICS = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
ORIGIN = "a CLIP model that save_pretrained wrote"


class CosineReward(nn.Module):
    """r(x, c) = scale cos(image features, text features) of a CLIPModel; weights frozen.

    Text features are computed once for each distinct prompt, one prompt at a time and without padding, so that their
    bits do not depend on which prompts came together. `square` brings images to the model's size.
    """

    differentiable = True

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, mean, std, square: Callable = to_square):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.mean, self.std, self.square = mean, std, square
        self.cache = PromptCache()
        self.requires_grad_(False).eval()

    def scale(self) -> torch.Tensor | float:
        """The factor before the cosine."""
        return 100.0

    def read(self, prompt: str) -> str:
        """The text of a prompt that the tokenizer is given."""
        return prompt

    def reward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] of any size, B prompts -> rewards [B], in fp32 or better."""
        features = image_features(self.model, images, self.mean, self.std, self.square)
        text = self.cache.stack(prompts, self._text_features)
        return self.scale() * (features * text).sum(-1)

    forward = reward

    def _text_features(self, prompt: str) -> torch.Tensor:
        return text_features(self.model, tokenize(self.tokenizer, [self.read(prompt)], self.model))[0]


class ClipScore(CosineReward):
    """The CLIP score: 100 cos(image, prompt), not clamped at zero and without a prefix such as "A photo depicts".

    Hessel et al. 2021 take 2.5 max(cos, 0) with that prefix; torchmetrics takes max(100 cos, 0). The clamp is left out
    because it has no gradient. From a folder that CLIPModel.save_pretrained wrote.
    """

    def __init__(self, folder: str | Path):
        super().__init__(*load_clip(folder), *image_statistics(folder))

    @staticmethod
    def check_folder(folder: str | Path) -> None:
        """Raise UserError where a file is missing, or the image processor's is none; no weights are loaded."""
        require_clip(folder)
        image_statistics(folder)
        require_tokenizer(CLIPTokenizer, folder, ORIGIN)


class ClipReward(ClipScore):
    """r = logit_scale.exp() cos(image, prompt): PickScore (Kirstain et al. 2023), or any CLIPModel so fitted."""

    def scale(self) -> torch.Tensor:
        return self.model.logit_scale.exp()


def image_features(model: CLIPModel, images: torch.Tensor, mean, std, square: Callable = to_square) -> torch.Tensor:
    """Unit image features [B, D] of images [B, 3, H, W] in [0, 1], in fp32 or better."""
    pixels = normalise(square(images, model.config.vision_config.image_size), mean, std)
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
    """CLIPModel (safetensors, every weight present) and CLIPTokenizer of a folder or a hub's id. Raises UserError."""
    folder = clip_files(folder)
    return load_clip_model(folder), load_tokenizer(CLIPTokenizer, folder, ORIGIN)


def clip_files(folder: str | Path) -> Path:
    """A folder of a CLIPModel, or a hub's id, as a folder on this machine. Raises UserError as `hub.fetch.local`."""
    return local(folder, of_reward(None))


def load_clip_model(folder: str | Path) -> CLIPModel:
    """The CLIPModel of a local folder in fp32, from safetensors, every weight present. Raises UserError."""
    require_clip(folder)
    return load_pretrained(CLIPModel, folder, "CLIP model")


def require_clip(folder: str | Path) -> None:
    """Raise UserError where the folder holds no CLIP model."""
    require_model(folder, "CLIP model", ORIGIN)


def image_statistics(
    folder: str | Path, otherwise: Mapping[str, tuple[float, ...]] = STATISTICS
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel mean and standard deviation of the folder's image processor; `otherwise`, CLIP's, where it says none.

    It is in preprocessor_config.json, or in processor_config.json, in which younger versions of transformers write it
    beside the tokenizer's. Raises UserError where such a file is none.
    """
    for name in PROCESSORS:
        path = clip_files(folder) / name
        if not path.is_file():
            continue
        try:
            said = json.loads(path.read_text())
            said = said.get("image_processor", said)
            mean, std = (tuple(map(float, said.get(key, default))) for key, default in otherwise.items())
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no configuration of an image processor ({error}): fetch it again") from None
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UserError(f"{path}: image_mean and image_std must be three numbers, the latter above 0")
        return mean, std
    return otherwise["image_mean"], otherwise["image_std"]


def _unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
