"""The text side of reward models: tokenizers from a local folder, and what is known of a prompt kept for its return."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipp_ray.errors import UserError

CACHED_PROMPTS = 16_384


class PromptCache(nn.Module):
    """A tensor for each distinct prompt, computed once and for one prompt at a time; the newest `size` are kept.

    So the bits of a prompt's tensor do not depend on which prompts came together. It is a module without weights, so
    that a move or a cast of the model around it empties it: what it holds would be another model's.
    """

    def __init__(self, size: int = CACHED_PROMPTS):
        super().__init__()
        self.size = size
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()

    def stack(self, prompts: list[str], compute: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """[B, ...]: compute(prompt) of each of B prompts, without gradient."""
        values = {prompt: self._value(prompt, compute) for prompt in dict.fromkeys(prompts)}
        return torch.stack([values[prompt] for prompt in prompts])

    def _value(self, prompt: str, compute: Callable[[str], torch.Tensor]) -> torch.Tensor:
        if prompt in self._known:
            self._known.move_to_end(prompt)
            return self._known[prompt]
        with torch.no_grad():
            value = compute(prompt)
        self._known[prompt] = value
        if len(self._known) > self.size:
            self._known.popitem(last=False)
        return value

    def _apply(self, fn, recurse=True):
        self._known.clear()
        return super()._apply(fn, recurse)


def load_tokenizer(kind: Any, folder: str | Path, origin: str):
    """A tokenizer of class `kind` from its files in a local folder.

    Raises UserError where they are missing (transformers would give a tokenizer of no words) or do not load.
    """
    require_tokenizer(kind, folder, origin)
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # The tokenizers library raises bare Exceptions.
        raise UserError(f"the tokenizer in {folder} does not load: {' '.join(str(error).split())}") from error


def require_tokenizer(kind: Any, folder: str | Path, origin: str) -> None:
    """Raise UserError where the folder holds no tokenizer's files."""
    own = list(kind.vocab_files_names.values())
    vocabulary = [name for name in own if name != "tokenizer.json"]
    if (Path(folder) / "tokenizer.json").is_file() or all((Path(folder) / name).is_file() for name in vocabulary):
        return
    raise UserError(
        f"tokenizer.json (or {' and '.join(vocabulary)}) is missing in {folder}: put there the tokenizer of {origin}"
    )
