"""Human Preference Score v3 (Ma et al. 2025, arXiv:2508.03789) from its published file: a head over Qwen2-VL."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding, Qwen2VLVisionRotaryEmbedding

from dipp_ray.errors import CallError, UserError
from dipp_ray.rewards.clip import CLIP_MEAN, CLIP_STD
from dipp_ray.rewards.preprocess import normalise, resize
from dipp_ray.rewards.pretrained import require_model
from dipp_ray.rewards.qwen_patches import patches_of, size_for
from dipp_ray.rewards.tokenizers import load_tokenizer, require_tokenizer
from dipp_ray.rewards.weights import fill, rename, require_file

INSTRUCTION = "instruction.txt"
TOKENIZER_ORIGIN = "Qwen/Qwen2-VL-7B-Instruct"
PROMPT, REWARD, IMAGE, PAD = "{text_prompt}", "<|Reward|>", "<|image_pad|>", "<|endoftext|>"
# How Qwen2-VL's chat template writes one turn of a user with one image.
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|>"
    "<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
)
PIXELS = 256 * 28 * 28  # of the image that it was trained to look at, give or take the sides' rounding
WIDTHS = (1024, 16)
# Keys of the file, of transformers before and since 4.52 -> keys of this module.
KEYS = (
    (r"^visual\.", "model.visual."),
    (r"^model\.(?!visual\.|language_model\.)", "model.language_model."),
    (r"^rm_head\.", "head."),
)
UNREAD = "lm_head."


class Hpsv3(nn.Module):
    """HPSv3: mu of the score's normal distribution, read off the hidden state at the token <|Reward|>; frozen.

    Range: about -5 to 15. The folder holds HPSv3.safetensors, config.json and tokenizer of Qwen2-VL-7B-Instruct, and in
    instruction.txt what the user is made to say, with {text_prompt} and <|Reward|> in it. The backbone keeps the
    file's precision, bf16 as it is published; the head is fp32, as in the original. pixels: of the resized image.
    """

    differentiable = True
    FILE = "HPSv3.safetensors"

    def __init__(self, folder: str | Path, pixels: int = PIXELS):
        super().__init__()
        path = require_file(folder, self.FILE, "HPSv3")
        self.instruction = read_instruction(folder)
        self.tokenizer = load_tokenizer(Qwen2Tokenizer, folder, TOKENIZER_ORIGIN)
        self.tokenizer.add_tokens([REWARD], special_tokens=True)
        self.ids = dict(
            zip((REWARD, IMAGE, PAD), self.tokenizer.convert_tokens_to_ids([REWARD, IMAGE, PAD]), strict=True)
        )
        self.pixels = pixels
        weights = {rename(key, KEYS): value for key, value in _read(path).items() if not key.startswith(UNREAD)}
        config = _config(folder, weights, len(self.tokenizer), path)
        if self.ids[IMAGE] != config.image_token_id:
            raise UserError(
                f"{IMAGE} is token {self.ids[IMAGE]} of the tokenizer in {folder}, and {config.image_token_id} in its "
                f"config.json: put there both of {TOKENIZER_ORIGIN}"
            )
        with torch.device("meta"):
            self.model = Qwen2VLModel(config)
            self.head = _head(config.text_config.hidden_size)
        fill(self, weights, path, dtype=None)
        # Their tables are in no file, and were left on the meta device.
        self.model.language_model.rotary_emb = Qwen2VLRotaryEmbedding(config.text_config)
        self.model.visual.rotary_pos_emb = Qwen2VLVisionRotaryEmbedding(config.vision_config)
        self.head.float()

    @classmethod
    def check_folder(cls, folder: str | Path) -> None:
        """Raise UserError where a file is missing or none of its kind; no weights are loaded."""
        require_file(folder, cls.FILE, "HPSv3")
        read_instruction(folder)
        require_tokenizer(Qwen2Tokenizer, folder, TOKENIZER_ORIGIN)
        _read_config(folder)

    def reward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] of any size, B prompts -> rewards [B], in fp32 or better."""
        vision = self.model.config.vision_config
        patch, merge = vision.patch_size, vision.spatial_merge_size
        height, width = size_for(images.shape[-2], images.shape[-1], patch * merge, self.pixels)
        pixels = normalise(resize(images, height, width), CLIP_MEAN, CLIP_STD)
        rows, columns = height // patch, width // patch
        ids, mask = self._tokens(prompts, rows * columns // merge**2)
        hidden = self.model(
            input_ids=ids,
            attention_mask=mask,
            mm_token_type_ids=(ids == self.ids[IMAGE]).int(),
            pixel_values=patches_of(pixels, patch, merge, vision.temporal_patch_size).flatten(0, 1),
            image_grid_thw=torch.tensor([[1, rows, columns]] * len(images), device=ids.device),
            use_cache=False,
        ).last_hidden_state
        features = hidden[ids == self.ids[REWARD]]  # one a row
        with torch.autocast(ids.device.type, enabled=False):
            score = self.head(features.to(self.head[0].weight.dtype))[:, 0]
        return score.to(torch.promote_types(score.dtype, torch.float32))

    forward = reward

    def _tokens(self, prompts: list[str], image_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask [B, L], padded behind to the longest: what comes later changes nothing."""
        rows = [self._row(prompt, image_tokens) for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.ids[PAD]] * (longest - len(row)) for row in rows])
        mask = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
        device = self.model.device
        return ids.to(device), mask.long().to(device)

    def _row(self, prompt: str, image_tokens: int) -> list[int]:
        reserved = next((token for token in self.tokenizer.get_added_vocab() if token in prompt), None)
        if reserved is not None:
            raise CallError(f"a prompt contains {reserved}, a token of HPSv3's own: leave it out")
        text = CHAT.format(self.instruction.replace(PROMPT, prompt))
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        at = ids.index(self.ids[IMAGE])
        return [*ids[:at], *[self.ids[IMAGE]] * image_tokens, *ids[at + 1 :]]


def read_instruction(folder: str | Path) -> str:
    """What the user is made to say, to the letter. Raises UserError where the file is missing or lacks a place."""
    path = require_file(folder, INSTRUCTION, "the instruction of HPSv3 (docs/rewards.md says how to write it)")
    text = path.read_bytes().decode("utf-8", "replace")  # its line ends and spaces are part of it
    for place in (PROMPT, REWARD):
        if text.count(place) != 1:
            raise UserError(
                f"{path} holds {place} {text.count(place)} times, not once: write it as docs/rewards.md says"
            )
    return text


def _head(width: int) -> nn.Sequential:
    a, b = WIDTHS
    return nn.Sequential(  # where the identity is, the original drops out as it is trained
        nn.Linear(width, a), nn.ReLU(), nn.Identity(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 2)
    )


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} does not load, so fetch it again: {' '.join(str(error).split())}") from None


def _config(folder: str | Path, weights: Mapping[str, torch.Tensor], tokens: int, path: Path) -> Qwen2VLConfig:
    """Of the backbone, for the vocabulary of the file: the original cut it to the tokenizer's."""
    config = _read_config(folder)
    embedding = weights.get("model.language_model.embed_tokens.weight")
    if embedding is not None and len(embedding) != tokens:
        raise UserError(
            f"{path} knows {len(embedding)} tokens and the tokenizer in {folder} {tokens}: put there the tokenizer of "
            f"{TOKENIZER_ORIGIN}"
        )
    config.text_config.vocab_size = tokens
    return config


def _read_config(folder: str | Path) -> Qwen2VLConfig:
    require_model(folder, "Qwen2-VL configuration", TOKENIZER_ORIGIN)
    path = Path(folder) / "config.json"
    try:
        said = json.loads(path.read_text())
        if said.get("model_type") != "qwen2_vl":
            raise UserError(
                f"{path} is of a {said.get('model_type')}, not a qwen2_vl: put there that of {TOKENIZER_ORIGIN}"
            )
        return Qwen2VLConfig.from_dict(said)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no configuration of Qwen2-VL ({' '.join(str(error).split())}): fetch it again"
        ) from None
