"""The reward model before its fit: a tiny CLIPModel with random weights, and a CLIP tokenizer of whole words."""

import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from dipp_ray.miniature.digits import ALL_PROMPTS
from dipp_ray.miniature.stages import seeded

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
# Images in [0, 1] are read as [-1, 1].
PREPROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@dataclass(frozen=True)
class RewardBaseRecipe:
    seed: int = 15
    image_size: int = 8
    patch_size: int = 2
    width: int = 64
    mlp_width: int = 256
    heads: int = 4
    vision_layers: int = 3
    text_layers: int = 2
    text_tokens: int = 16


def save_reward_base(folder: Path, recipe: RewardBaseRecipe) -> None:
    """Write config, random weights, tokenizer and the images' statistics as CLIPModel and CLIPTokenizer load them."""
    tokenizer = whole_word_tokenizer()
    tower = {
        "hidden_size": recipe.width,
        "intermediate_size": recipe.mlp_width,
        "num_attention_heads": recipe.heads,
        "projection_dim": recipe.width,
    }
    text = tower | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": recipe.text_tokens,
        "num_hidden_layers": recipe.text_layers,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {
        "image_size": recipe.image_size,
        "patch_size": recipe.patch_size,
        "num_hidden_layers": recipe.vision_layers,
    }
    with seeded(recipe.seed):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=recipe.width))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")


def whole_word_tokenizer() -> CLIPTokenizer:
    """Byte-pair merges carried on until each word of the prompts is one token."""
    words = Counter(word for prompt in ALL_PROMPTS for word in prompt.replace("-", " - ").split())
    letters = sorted({letter for word in words for letter in word})
    merges = merges_of(words)
    tokens = [*letters, *(letter + WORD_END for letter in letters), *("".join(pair) for pair in merges)]
    # The end's id must be the largest: CLIP's oldest configurations find the end of a text by it.
    vocabulary = {token: index for index, token in enumerate([*dict.fromkeys(tokens), START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def merges_of(words: dict[str, int]) -> list[tuple[str, str]]:
    """Byte-pair merges of counted words, most frequent pair first (the first in the alphabet of equals), to the end."""
    spelled = {word: [*word[:-1], word[-1] + WORD_END] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in spelled.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in spelled.values():
            index = 0
            while index < len(parts) - 1:
                if (parts[index], parts[index + 1]) == best:
                    parts[index : index + 2] = ["".join(best)]
                index += 1
