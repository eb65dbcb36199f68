"""Prompt embeddings as the networks read them, and as they travel."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class PromptEmbeds:
    """Text embeddings [B, L, D], their mask [B, L] (1 = read) or None, and pooled ones [B, P] or None."""

    tokens: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, function) -> "PromptEmbeds":
        """Of each part that there is, what `function` makes of it."""
        tokens, *others = self.parts
        return PromptEmbeds(function(tokens), *(None if part is None else function(part) for part in others))

    @property
    def parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.tokens, self.mask, self.pooled

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts if part is not None)

    def to(self, device, dtype: torch.dtype | None = None) -> "PromptEmbeds":
        """Moved; floating parts in `dtype` if given."""
        return self.map(lambda part: part.to(device, dtype if part.is_floating_point() else None))

    def clone(self) -> "PromptEmbeds":
        """A copy that holds no more memory than `nbytes`: what was trimmed is a view of the whole."""
        return self.map(torch.clone)

    def repeat(self, times: int) -> "PromptEmbeds":
        """One row repeated `times`, as a view."""
        return self.map(lambda part: part.expand(times, *part.shape[1:]))

    def padded(self, length: int) -> "PromptEmbeds":
        """With L = length; the added tokens are masked. Without a mask every length is the same already."""
        more = length - self.tokens.shape[1]
        if more == 0 or self.mask is None:
            return self
        return PromptEmbeds(pad(self.tokens, (0, 0, 0, more)), pad(self.mask, (0, more)), self.pooled)

    def trimmed(self) -> "PromptEmbeds":
        """Cut to the longest prompt of the batch: masked tokens cost time and change nothing."""
        if self.mask is None:
            return self
        length = int(self.mask.sum(1).max())
        return PromptEmbeds(self.tokens[:, :length], self.mask[:, :length], self.pooled)

    @staticmethod
    def concatenate(*batches: "PromptEmbeds") -> "PromptEmbeds":
        length = max(batch.tokens.shape[1] for batch in batches)
        tokens, *others = zip(*(batch.padded(length).parts for batch in batches), strict=True)
        return PromptEmbeds(torch.cat(tokens), *(None if part[0] is None else torch.cat(part) for part in others))

    def arrays(self) -> tuple[np.ndarray | None, ...]:
        """As NumPy arrays in fp32, which Ray's object store hands over without a copy."""
        return tuple(None if part is None else part.float().numpy() for part in self.parts)

    @staticmethod
    def from_arrays(arrays: tuple[np.ndarray | None, ...], device) -> "PromptEmbeds":
        tokens, *others = arrays
        parts = (None if array is None else torch.tensor(array, device=device) for array in others)
        return PromptEmbeds(torch.tensor(tokens, device=device), *parts)
