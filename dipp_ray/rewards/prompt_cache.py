"""What a reward model has computed of a prompt, kept for the prompt's return."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

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
