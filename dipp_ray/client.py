"""A remote reward as a torch module, for anybody's training script: its gradient joins the caller's graph.

    reward = RemoteReward("http://127.0.0.1:8000")
    loss = -reward(images, prompts).mean()
    loss.backward()                            # the service's exact gradient flows on into whatever made the images

So ReFL, DRaFT, AlignProp or any script of one's own trains against a reward that lives on other GPUs. Neither Ray nor
diffusers is needed here: torch, numpy, aiohttp and pydantic alone.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dipp_ray.errors import RewardUnavailableError
from dipp_ray.serving.client.by_http import OF_CALLER, HttpTransport, read_token
from dipp_ray.serving.client.reward_client import RewardClient, require_rows
from dipp_ray.serving.contract.records import ServiceRecord, Space, WireDtype

__all__ = ["RemoteReward", "Scores"]
CLOSED = "this RemoteReward is closed: make another"
LAST_S = 5.0  # so long the end of a program waits for connections to close


@dataclass(frozen=True)
class Scores:
    """What the service said beside the reward: each model's raw score [B], and which of them enter no sum."""

    scores: dict[str, Tensor]
    held_out: tuple[str, ...]


class RemoteReward(nn.Module):
    """The weighted reward of a service, [B] in fp32, differentiable once in the images or latents.

    url: of the service, or of several that serve the same. space: what is given, `images` [B, 3, H, W] in [0, 1] or
    `latents` [B, C, h, w] in the model's scale (the service needs a VAE). vae: which of the service's VAEs made the
    latents, None for its only one. token: this caller's bearer token; None for the one in DIPP_RAY_REWARD_TOKEN.
    deadline_s: the longest wait for one answer in seconds, retries included. dtype: of images and gradients on the
    wire; fp16 halves the traffic, to fp16's rounding. held_out: score the models that are held out of the sum too, into
    `latest`; they cost what a trained one costs. trainer: who calls, where no token says it.

    A call blocks until the answer is there. Raises CallError for a call that cannot be answered, NonFiniteError where
    a reward or gradient is not finite, RewardUnavailableError past the deadline and where any model gave no answer: a
    term that failed is never taken for 0; RuntimeError after `close`. The module has no parameters and no state to
    save.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        space: Space = "images",
        vae: str | None = None,
        token: str | None = None,
        deadline_s: float = 120.0,
        dtype: WireDtype = "fp32",
        held_out: bool = True,
        trainer: str = "anonymous",
    ):
        super().__init__()
        urls = [url] if isinstance(url, str) else list(url)
        transport = HttpTransport(urls, token or read_token(None), dtype, OF_CALLER)
        self.space, self.held_out = space, held_out
        self.latest: Scores | None = None
        self._client = RewardClient(transport, deadline_s, on_nonfinite="raise", space=space, trainer=trainer, vae=vae)
        self._loop = _Loop()
        self._close = weakref.finalize(self, self._loop.end, self._client.close)
        self._service: ServiceRecord | None = None

    def forward(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards [B] of x [B, C, h, w] and B prompts, on x's device; their gradient is what the service computed.

        A batch that is larger than the service takes in one call goes in several.
        """
        require_rows(len(x), prompts, self.space)
        return _Reward.apply(x, self, list(prompts), torch.is_grad_enabled() and x.requires_grad)

    def describe(self) -> ServiceRecord:
        """What the service is: its models, their part in the sum, its limits."""
        if self._service is None:
            self._service = self._run(self._client.describe())
        return self._service

    def close(self) -> None:
        """End the connections. What is left open is closed when it is dropped, and at the end of the program."""
        self._close()

    def ask(self, x: Tensor, prompts: list[str], gradient: bool) -> dict[str, Any]:
        """reward [B], gradient [B, C, h, w] or None and scores {name: [B]} as arrays, over all calls that it takes."""
        sent = x.detach().to("cpu", torch.float32).numpy()
        rows = self.describe().limits.rows_of(sent[0].nbytes)

        async def parts() -> list[dict]:
            starts = range(0, len(sent), rows)
            calls = [(sent[i : i + rows], prompts[i : i + rows]) for i in starts]
            return [await self._client.score(*call, gradient, self.held_out) for call in calls]

        found = self._run(parts())
        for name, reason in {name: reason for part in found for name, reason in part["failed"].items()}.items():
            raise RewardUnavailableError(f"reward '{name}' gave no answer: {reason}")

        def joined(key: str) -> np.ndarray:
            return np.concatenate([part[key] for part in found])

        names = found[0]["scores"]
        return {
            "reward": joined("reward"),
            "gradient": joined("gradient") if gradient else None,
            "scores": {name: np.concatenate([part["scores"][name] for part in found]) for name in names},
            "held_out": tuple(found[0]["held_out"]),
        }

    def _run(self, call: Coroutine) -> Any:
        if not self._close.alive:
            call.close()
            raise RuntimeError(CLOSED)
        try:
            return self._loop.run(call)
        except CancelledError:  # by another thread
            raise RuntimeError(CLOSED) from None

    def __reduce_ex__(self, protocol):
        raise TypeError("a RemoteReward holds connections and cannot be copied or pickled: make another")


class _Reward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, module: RemoteReward, prompts: list[str], gradient: bool) -> Tensor:
        reply = module.ask(x, prompts, gradient)

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.array(values, dtype=np.float32)).to(x.device)

        module.latest = Scores({name: tensor(score) for name, score in reply["scores"].items()}, reply["held_out"])
        if gradient:
            ctx.save_for_backward(tensor(reply["gradient"]).to(x.dtype))
        return tensor(reply["reward"])

    @staticmethod
    def backward(ctx, *upstream: Tensor):
        if torch.is_grad_enabled():  # create_graph: what follows would take this gradient for a constant, in silence
            raise RuntimeError("RemoteReward: the service knows no second derivative: leave create_graph out")
        (gradient,) = ctx.saved_tensors
        return upstream[0].to(gradient.dtype).reshape(-1, *[1] * (gradient.ndim - 1)) * gradient, None, None, None


class _Loop:
    """An event loop in a thread of its own, so that calls block wherever they come from, a notebook's loop included."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="reward client", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def run(self, coroutine: Coroutine) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: the service need not go on
            raise

    def end(self, close: Callable[[], Coroutine]) -> None:
        """Break off what is on its way, await `close` and end, within LAST_S seconds; from whichever thread."""

        async def ending() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await close()

        future = asyncio.run_coroutine_threadsafe(ending(), self._loop)
        future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._loop.stop))
        if threading.current_thread() is not self._thread:  # where the garbage is collected nobody chooses
            self._thread.join(LAST_S)
