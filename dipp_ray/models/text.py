"""Prompts to embeddings, by the pipeline's own tokenizers and text encoders."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from dipp_ray.config import RunConfig
from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.errors import UserError
from dipp_ray.hub.fetch import local
from dipp_ray.hub.selection import weights_but_of
from dipp_ray.models.components import load_components
from dipp_ray.models.denoiser import DTYPES
from dipp_ray.models.families import Family
from dipp_ray.models.pipeline import frame_of, read_frame

REMEMBER = 4 * 2**30  # bytes
TOGETHER = 32  # prompts of a pass, where bits do not matter


class TextEncoder:
    """Encodes prompts one by one, so that a prompt's bits never depend on its batch, and remembers them.

    `dtype`, 'fp32' or 'bf16', is that of the encoders' weights and arithmetic. `remember` bounds the memory: so many
    bytes, the oldest prompt forgotten first (they take up to 8 MB each). `frame` is the folder's, read here where it is
    None. `together`: so many prompts go through the encoders in a pass, which is faster and moves last bits. Raises
    UserError for a folder whose pipeline is not supported.
    """

    def __init__(
        self,
        folder: str | Path,
        device: torch.device,
        dtype: str = "fp32",
        remember: int = REMEMBER,
        frame: Family | None = None,
        together: int = 1,
    ):
        self.frame = frame or read_frame(folder)
        others = (self.frame.network_part, "vae")
        local(folder, weights_but_of(*others, *self.frame.dispensable))
        self.pipeline = load_components(self.frame, DTYPES[dtype], others).to(device)
        self.device = device
        self.remember, self.together = remember, together
        self._known: dict[str, PromptEmbeds] = {}
        self._bytes = 0

    def row(self, prompt: str) -> PromptEmbeds:
        """One prompt's embeddings as the pipeline gives them, on the CPU: `__call__` pads and trims a batch of such."""
        return self.rows([prompt])[0]

    @torch.no_grad()
    def rows(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        """`row` of each prompt."""
        for some in self._passes([prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]):
            given = list(some) if len(some) > 1 else some[0]  # a copy: Z-Image's pipeline writes into the list
            encoded = self.frame.encode(self.pipeline, given, self.device).to("cpu")
            if len(encoded) != len(some):
                family = type(self.frame).__name__
                raise UserError(
                    f"{family}.encode gave {len(encoded)} rows for {len(some)} prompts: let it take a list, or set "
                    "run.deterministic=true"
                )
            for index, prompt in enumerate(some):
                self._known[prompt] = encoded.map(lambda part, row=index: part[row : row + 1]).trimmed().clone()
                self._bytes += self._known[prompt].nbytes
        found = [self._known[prompt] for prompt in prompts]
        while self._bytes > self.remember and len(self._known) > 1:  # only now: this batch may need the oldest
            self._bytes -= self._known.pop(next(iter(self._known))).nbytes
        return found

    def _passes(self, new: list[str]) -> Iterator[list[str]]:
        """Prompts that go through the encoders together: the null prompt by itself, for pipelines have rules for it."""
        if "" in new:
            yield [""]
        texts = [prompt for prompt in new if prompt]
        for start in range(0, len(texts), self.together):
            yield texts[start : start + self.together]

    def __call__(self, prompts: list[str]) -> PromptEmbeds:
        """Embeddings of the prompts, trimmed to the longest, on the CPU; '' is the null prompt of guidance."""
        return PromptEmbeds.concatenate(*self.rows(prompts)).trimmed()


def text_encoder(config: RunConfig, device: torch.device, remember: int) -> TextEncoder:
    """That of a run: its teacher's, in the precision of its text role; prompts one by one where bits matter."""
    together = 1 if config.run.deterministic else TOGETHER
    role = config.roles.text
    return TextEncoder(config.model.teacher, device, role.dtype, remember, frame_of(config.model), together)
