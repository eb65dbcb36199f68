"""What a network's passes take beside its weights, found without any: its operations are gone through with tensors that
have shapes and no memory, and what is alive at a time is added up.

What a library takes within one operation is known of convolutions on a CPU alone (measured: oneDNN's own copy of their
input, forwards and backwards), and what an allocator keeps is not seen.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dipp_ray.diffusion.prompt_embeds import PromptEmbeds
from dipp_ray.models.denoiser import Denoiser
from dipp_ray.models.families import Family

# Of how many of their first arguments the largest is copied: input; gradient of the output, and input.
CONVOLUTIONS = {torch.ops.aten.convolution.default: 1, torch.ops.aten.convolution_backward.default: 2}


@dataclass(frozen=True)
class Passes:
    """Bytes. graph: what a forward pass leaves for its backward. peak: the most that is alive in both together, or in
    the forward alone where there is no backward."""

    graph: int
    peak: int


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that were made since it was entered and are alive: `now`, and at `most`.

    on_cpu: with what convolutions take there while they run.
    """

    def __init__(self, on_cpu: bool) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()
        self.on_cpu = on_cpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {storage._cdata for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage._cdata not in given | self.known:
                self._made(storage)
        if self.on_cpu and func in CONVOLUTIONS:
            self.most = max(self.most, self.now + max(_size(part) for part in args[: CONVOLUTIONS[func]]))
        return out

    def _made(self, storage: torch.UntypedStorage) -> None:
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.now -= size


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def denoiser_passes(
    network: Any, frame: Family, compute: torch.dtype, kept: Callable[[nn.Parameter], torch.dtype], rows: int,
    embeds: PromptEmbeds, backward: bool, on_cpu: bool, weights: torch.dtype = torch.float32,
) -> Passes:  # fmt: skip
    """Of a network on the meta device, which is spent for it, on so many rows of latents.

    kept, weights, compute: as of `Hollow.fill` and `Denoiser`. on_cpu: as of `Alive`. embeds: a row, for its shapes.
    Raises whatever operations raise that need values and not shapes alone.
    """
    with _shapes_alone(network, kept):
        denoiser = Denoiser(network, frame, compute, weights).train(backward)
        x_t = torch.empty(rows, *frame.latent_shape, requires_grad=False)
        t = torch.full((rows,), 500.0 if frame.flow else 500, dtype=torch.float32 if frame.flow else torch.int64)
        given = embeds.map(lambda part: torch.empty(rows, *part.shape[1:], dtype=part.dtype))
        return _passes(lambda: denoiser(x_t, t, given), backward, on_cpu)


def decoder_passes(
    decoder: Any, latent_shape: tuple[int, ...], rows: int, backward: bool, on_cpu: bool,
    compute: torch.dtype = torch.float32,
) -> Passes:  # fmt: skip
    """The same of a `LatentDecoder` on the meta device, its weights in fp32."""
    autocast = torch.autocast("cpu", compute, enabled=compute != torch.float32)
    with _shapes_alone(decoder, lambda p: p.dtype), autocast:
        latents = torch.empty(rows, *latent_shape, requires_grad=backward)
        return _passes(lambda: decoder.decode(latents), backward, on_cpu)


def _passes(forward: Callable[[], Tensor], backward: bool, on_cpu: bool) -> Passes:
    with Alive(on_cpu) as alive, torch.set_grad_enabled(backward):
        out = forward()
        graph = alive.now
        if backward:
            out.backward(torch.empty_like(out))
        return Passes(graph, alive.most)


@contextmanager
def _shapes_alone(model: nn.Module, kept: Callable[[nn.Parameter], torch.dtype]) -> Iterator[None]:
    """Tensors that are made within have no memory, as those of `model` then: its gradients are there already."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    empty = nn.Parameter(torch.empty(parameter.shape, dtype=kept(parameter)), parameter.requires_grad)
                    if parameter.requires_grad:
                        empty.grad = torch.empty_like(empty)
                    module._parameters[name] = empty
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        yield
