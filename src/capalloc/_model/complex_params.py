"""Complex parameters as pairs of reals, which are what capacity counts."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn


def pair_up(model: nn.Module) -> bool:
    """Keep each complex parameter of a copy as a real one, (..., 2) on its memory; modules read it as it was.

    Tells whether there are any.
    """
    pairs: dict[int, nn.Parameter] = {}  # a tied parameter stays one
    for module in list(model.modules()):
        own = {name: p for name, p in module._parameters.items() if p is not None and p.is_complex()}
        for name, p in own.items():
            module._parameters[name] = pairs.setdefault(id(p), nn.Parameter(as_pairs(p), requires_grad=False))
        if own:
            kind = type(module)
            read = {name: property(partial(_read, name=name)) for name in own}
            module.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, **read})
    return bool(pairs)


def as_pairs(value: Tensor) -> Tensor:
    """A tensor of real numbers on the memory of one that may be complex."""
    return torch.view_as_real(value.detach()) if value.is_complex() else value.detach()


def count_reals(tensors: Iterable[Tensor]) -> int:
    """Count the real numbers in tensors."""
    return sum(t.numel() * (1 + t.is_complex()) for t in tensors)


def as_held(value: Tensor, held: Tensor) -> Tensor:
    """A tensor of the user's as a copy holds it."""
    return value.detach() if held.is_complex() else as_pairs(value)


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast parameters and buffers; complex ones, of which `Module.to` drops the imaginary part, to that precision."""

    def to(value: Tensor) -> Tensor:
        if value.is_complex():
            return value.to(dtype.to_complex())
        return value.to(dtype) if value.is_floating_point() else value

    model._apply(to)
    return model


def _read(module: nn.Module, name: str) -> Tensor:
    held = module._parameters[name]
    assert held is not None
    return torch.view_as_complex(held)
