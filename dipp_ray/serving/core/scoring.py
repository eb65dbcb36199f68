"""Scores and exact gradients of reward models: plain torch, the same in a service's replica and in one process."""

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dipp_ray.models.latents import LatentDecoder
from dipp_ray.rewards.combination import Answer, combine
from dipp_ray.rewards.loading import is_differentiable, load_reward
from dipp_ray.rewards.terms import RewardTerm
from dipp_ray.serving.contract.calls import validate_call
from dipp_ray.serving.contract.failures import NoGradientError
from dipp_ray.serving.contract.records import Space


class ModelScorer:
    """One reward model on one device, with the decoder in front for latents.

    `autocast`: the dtype of the networks' arithmetic, None for that of their weights.
    """

    def __init__(
        self,
        term: RewardTerm,
        decoder: LatentDecoder | None,
        device: str | torch.device = "cpu",
        autocast: torch.dtype | None = None,
    ):
        self.name = term.name
        self.model = load_reward(term)
        if isinstance(self.model, torch.nn.Module):
            self.model.to(device)
        self.decoder = decoder.to(device) if decoder is not None else None
        self.device = torch.device(device)
        self._autocast = autocast

    def answer(self, x: torch.Tensor, prompts: list[str], space: Space, gradient: bool) -> Answer:
        """The raw score of one chunk and, if asked, its derivative by what was sent; arrays in x's dtype or better.

        x: latents [B, C, h, w] in the model's scale, or images [B, 3, H, W] in [0, 1]; fp32 or fp64. Raises
        NoGradientError where a gradient was asked for and there is none, RuntimeError where the model returns something
        else than a tensor [B].
        """
        with torch.set_grad_enabled(gradient), casting(self.device, self._autocast):
            sent = x.detach().to(self.device).requires_grad_(gradient)
            images = sent
            if space == "latents":
                assert self.decoder is not None, "validate_call refuses latents where there is none"
                images = self.decoder.decode(sent)
            score = self.model.reward(images, prompts)
        if not isinstance(score, torch.Tensor):
            raise RuntimeError(f"reward '{self.name}' returned {_of_kind(score)}, not a tensor [{len(x)}]")
        if score.shape != (len(x),):
            raise RuntimeError(f"reward '{self.name}' returned shape {list(score.shape)}, not [{len(x)}]")
        slope: np.ndarray | None = None
        if gradient:
            # Rows do not depend on each other, so the gradient of the sum is each row's own. A score may want one by
            # weights that nobody froze, and have none by the images.
            found = torch.autograd.grad(score.sum(), sent, allow_unused=True)[0] if score.requires_grad else None
            if found is None:
                raise NoGradientError(self.name, place_of(self.model.reward))
            slope = found.cpu().numpy()
        return Answer(score.detach().to(torch.promote_types(score.dtype, torch.float32)).cpu().numpy(), slope)


class Decoding:
    """A decoder apart from the models that look at its images: to them, and from their derivatives back to latents.

    `autocast`: as of ModelScorer.
    """

    def __init__(self, decoder: LatentDecoder, device: str | torch.device, autocast: torch.dtype | None = None):
        self.decoder, self.device, self._autocast = decoder.to(device), torch.device(device), autocast

    def images(self, x: torch.Tensor, gradient: bool) -> np.ndarray:
        """Images [B, 3, H, W] in [0, 1] of latents x [B, C, h, w], in x's dtype.

        gradient: with a graph, which is dropped: a forward pass without one may take another way to other bits.
        """
        return self._decoded(x, gradient)[1].detach().cpu().numpy()

    def pull_back(self, x: torch.Tensor, slopes: torch.Tensor) -> np.ndarray:
        """The derivative by latents x of a function whose derivative by their images is `slopes` [B, 3, H, W]."""
        sent, images = self._decoded(x, gradient=True)
        return torch.autograd.grad(images, sent, slopes.to(self.device))[0].cpu().numpy()

    def _decoded(self, x: torch.Tensor, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.set_grad_enabled(gradient), casting(self.device, self._autocast):
            sent = x.detach().to(self.device).requires_grad_(gradient)
            return sent, self.decoder.decode(sent)


def place_of(function: Callable) -> str:
    """File and line of a function's code, in brackets; empty where it has none in Python."""
    code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)
    return f" ({code.co_filename}, line {code.co_firstlineno})" if code is not None else ""


def _of_kind(value: object) -> str:
    """Such as `a numpy.ndarray`."""
    kind = type(value)
    return f"a {kind.__qualname__ if kind.__module__ == 'builtins' else f'{kind.__module__}.{kind.__qualname__}'}"


def casting(device: torch.device, dtype: torch.dtype | None):
    """The context of arithmetic in `dtype`, None for that of the weights."""
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


@dataclass(frozen=True)
class ScoreReply:
    """reward [B]: the weighted sum. scores: {name: [B]}, raw. gradient [B, C, h, w]: d reward_i / d x_i, or None."""

    reward: torch.Tensor
    scores: dict[str, torch.Tensor]
    gradient: torch.Tensor | None


class Scorer:
    """All reward models of `terms` in this process: what the service returns, without the service.

    Every call is worked off in chunks of `chunk_size` rows (the last may be shorter), so an answer is a function of
    the call alone: a row's last bits change with the size of its batch.
    """

    def __init__(
        self,
        terms: list[RewardTerm],
        decoder: LatentDecoder | None,
        chunk_size: int,
        device: str | torch.device = "cpu",
        autocast: torch.dtype | None = None,
    ):
        self.terms = list(terms)
        self.models = {term.name: ModelScorer(term, decoder, device, autocast) for term in terms}
        self.decoder = decoder
        self.chunk_size = chunk_size

    def score(self, x: torch.Tensor, prompts: list[str], space: Space, gradient: bool) -> ScoreReply:
        """Score x and, if asked, differentiate the weighted reward by what was sent.

        x: latents [B, C, h, w] in the model's scale, or images [B, 3, H, W] in [0, 1]; fp32 or fp64. prompts: B texts.
        The reply lies on x's device; its gradient has x's shape and dtype. Non-finite values are returned as they
        are: what to do about them is the caller's policy. Raises CallError for what cannot be scored.
        """
        channels = self.decoder.latent_channels if self.decoder is not None else None
        flat = [name for name, scorer in self.models.items() if not is_differentiable(scorer.model)]
        validate_call(x, prompts, space, gradient, channels, self.terms, flat)
        parts = []
        for i in range(0, len(x), self.chunk_size):
            rows, texts = x[i : i + self.chunk_size], prompts[i : i + self.chunk_size]
            answers = {
                term.name: self.models[term.name].answer(rows, texts, space, gradient and not term.held_out)
                for term in self.terms
            }
            parts.append(combine(self.terms, answers, gradient))

        def tensor(arrays: list[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate(arrays)).to(x.device)

        return ScoreReply(
            tensor([part.reward for part in parts]),
            {term.name: tensor([part.scores[term.name] for part in parts]) for term in self.terms},
            tensor([part.gradient for part in parts if part.gradient is not None]) if gradient else None,
        )
