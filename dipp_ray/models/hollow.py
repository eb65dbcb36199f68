"""Models of diffusers that are made without their weights, and filled from files one weight at a time.

So a model never lies in memory twice, nor in another precision than the one that it is kept in; and what is laid into
it before it is filled, such as an adapter, decides how each weight is kept.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dipp_ray.models.stored import Stored

# Gives a parameter its values, those of a file's tensor in some precision.
Put = Callable[[nn.Parameter, Stored, torch.dtype], None]


def put_whole(parameter: nn.Parameter, stored: Stored, dtype: torch.dtype) -> None:
    parameter.data = stored.read(dtype)


class Hollow:
    """A model of diffusers in eval mode whose parameters take no memory until `fill`: all their elements are one zero.

    Its buffers are there. kind: its class. config: that of its config.json. stored: the tensors of its files, by the
    names that its class has for them now or had before. dtype: of buffers whose class does not say it.
    """

    def __init__(self, kind: Any, config: dict, stored: Mapping[str, Stored], dtype: torch.dtype = torch.float32):
        with _weightless(), _default(dtype):
            self.model: Any = kind.from_config(config).eval()
        _drop_meta(self.model)
        self.parameters = dict(self.model.named_parameters())  # by their files' names: an adapter gives them others
        names = set(self.model.state_dict())
        self.buffers = {name: buffer for name, buffer in self.model.named_buffers() if name in names}
        self.stored = dict(stored)
        if set(self.stored) != names:
            self.model._fix_state_dict_keys_on_load(self.stored)

    def multiply(self, module: str, factor: float) -> None:
        """Multiply the weights of a module by `factor` as they are filled in."""
        self.stored = {
            name: stored.times(factor) if name.startswith(f"{module}.") else stored
            for name, stored in self.stored.items()
        }

    @torch.no_grad()
    def fill(self, kept: Callable[[nn.Parameter], torch.dtype], put: Put = put_whole) -> None:
        """Give every parameter its values, in the precision that `kept` says, and every buffer in the files its own."""
        for name, parameter in self.parameters.items():
            put(parameter, self.stored[name], kept(parameter))
        for name, buffer in self.buffers.items():
            buffer.copy_(self.stored[name].read(buffer.dtype))


@contextmanager
def _weightless() -> Iterator[None]:
    """Parameters that modules are given lie on the meta device; their first values are computed for none."""
    register = nn.Module.register_parameter

    def register_empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, None if param is None else nn.Parameter(param.to("meta"), param.requires_grad))

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _drop_meta(model: nn.Module) -> None:
    """In the place of meta tensors ordinary ones that take no memory, which libraries treat as they treat weights."""
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                nothing = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                known.setdefault(id(parameter), nn.Parameter(nothing, parameter.requires_grad))
                module._parameters[name] = known[id(parameter)]


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
