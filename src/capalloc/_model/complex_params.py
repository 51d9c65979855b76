"""Complex parameters as pairs of reals, which are what capacity counts."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from capalloc._model.containers import contents
from capalloc._model.nested_arguments import check_nesting


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
            metaclass: type = type(kind)
            module.__class__ = metaclass(kind.__name__, (_Unlisted, kind), {"__module__": kind.__module__, **read})
    return bool(pairs)


def as_pairs(value: Tensor) -> Tensor:
    """A tensor of real numbers on the memory of one that may be complex."""
    return torch.view_as_real(value.detach()) if value.is_complex() else value.detach()


def count_reals(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * (1 + t.is_complex()) for t in tensors)


def as_held(value: Tensor, held: Tensor) -> Tensor:
    """A tensor of the user's as a copy holds it."""
    return value.detach() if held.is_complex() else as_pairs(value)


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast parameters, buffers and what modules keep beside them, such as a grid that the first run made.

    Complex ones, of which `Module.to` drops the imaginary part, are cast to that precision.

    Raises:
        ValueError: a module keeps tensors in a container that holds itself.

    """

    def to(value: Tensor) -> Tensor:
        if value.is_complex():
            return value.to(dtype.to_complex())
        return value.to(dtype) if value.is_floating_point() else value

    model._apply(to)
    for module in model.modules():
        for name in vars(module).keys() - _OF_TORCH:
            held = vars(module)[name]
            if any(isinstance(leaf, Tensor) and to(leaf) is not leaf for _, leaf in contents([(name, held)])):
                check_nesting(held, f"{name!r} of a {type(module).__name__}")
                vars(module)[name] = pytree.tree_map_only(Tensor, to, held)
    return model


#: Attributes of any module.
_OF_TORCH = set(vars(nn.Module()))


class _Unlisted(nn.Module):
    """Keeps from a class that lists its subclasses, or asks them for arguments, that it has one more."""

    def __init_subclass__(cls, **options: Any) -> None:
        pass


def _read(module: nn.Module, name: str) -> Any:
    held = module._parameters.get(name)
    if held is None:  # another of the same class, which its methods make of what they computed
        return nn.Module.__getattr__(module, name)
    return torch.view_as_complex(held)
