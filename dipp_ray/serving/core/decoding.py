"""One decode for all models of a batch, and one way back through the decoder for the gradient of their sum.

By the chain rule sum_k w_k dr_k/dz = (dx/dz)^T sum_k w_k dr_k/dx: the models' derivatives by the pixels x are summed
first, and go through the decoder once. In exact arithmetic nothing changes. In floating point the sum is rounded before
the decoder instead of behind it; where one model alone is trained there is no sum, and its weight is applied behind the
decoder as ever, so that every bit is what it would be with the decoder in front of that model. (On the way arrays keep
the order of their axes in memory, on which a reduction's bits depend, where NumPy's pickles keep it, as 2.4's do.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from dipp_ray.rewards.combination import Answer, pixel_slope, trained
from dipp_ray.rewards.terms import SumTerm
from dipp_ray.serving.contract.failures import DeadlineError, ModelError
from dipp_ray.serving.core.joining import joined
from dipp_ray.serving.core.work import Call, Outcome, Worked


class Decoders(Protocol):
    async def decode(self, call: Call, expires_s: float) -> np.ndarray: ...

    async def pull_back(self, call: Call, slopes: np.ndarray, expires_s: float) -> np.ndarray: ...


@dataclass(frozen=True)
class Summed:
    """The models' answers about a chunk's images as its sum has them. outcomes: without gradients. slope [b, 3, H, W]
    and factor [b]: of the sum by the images; None where the chunk failed."""

    outcomes: dict[str, Outcome]
    slope: np.ndarray | None
    factor: np.ndarray | None
    names: frozenset[str]  # the models in the sum


def images_of(call: Call, images: np.ndarray) -> Call:
    """The call as the models get it, decoded."""
    return replace(call, x=images, space="images", vae=None)


def summed(terms: Sequence[SumTerm], outcomes: dict[str, Outcome]) -> Summed:
    """The sum over the models that answered about one chunk."""
    try:
        answers, failed = joined(tuple(terms), [outcomes])
    except (ModelError, DeadlineError):
        return Summed(_scores(outcomes), None, None, frozenset())
    names = frozenset(term.name for term in trained(terms) if term.name in answers)
    slope, factor = pixel_slope(terms, answers)
    return Summed(_scores(outcomes | failed), slope, factor, names)


def _scores(outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
    return {name: Answer(one.score, None) if isinstance(one, Answer) else one for name, one in outcomes.items()}


async def pulled_back(
    decoders: Decoders, calls: Sequence[Call], chunks: Sequence[Summed], expires_s: float
) -> list[Worked]:
    """Each chunk's outcomes with the gradient of its sum by its latents; all of them go through the decoder at once.

    calls: of the latents, one a chunk. Raises ModelError and DeadlineError of the decoder.
    """
    good = [(call, chunk) for call, chunk in zip(calls, chunks, strict=True) if chunk.slope is not None]
    if not good:
        return [Worked(chunk.outcomes) for chunk in chunks]
    latents = replace(good[0][0], x=_joined([call.x for call, _ in good]), prompts=[])
    slopes = await decoders.pull_back(latents, _joined([chunk.slope for _, chunk in good]), expires_s)
    parts = iter(np.split(slopes, np.cumsum([len(call.x) for call, _ in good])[:-1]))
    worked = []
    for chunk in chunks:
        if chunk.factor is None:
            worked.append(Worked(chunk.outcomes))
            continue
        part = next(parts)
        factor = chunk.factor.astype(part.dtype).reshape(-1, *[1] * (part.ndim - 1))
        worked.append(Worked(chunk.outcomes, part * factor, chunk.names))
    return worked


def _joined(arrays: list) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
