"""Calls of operators with arguments named as in their schemas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from capalloc._operators.records import record


def bind(op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name arguments as the operator's schema does, defaults filled in."""
    if not isinstance(op, OpOverload):
        return {str(k): a for k, a in enumerate(args)} | dict(kwargs)
    named = {}
    for k, (name, defaults, _) in enumerate(_schema(op)):
        if k < len(args):
            named[name] = args[k]
        elif name in kwargs:
            named[name] = kwargs[name]
        elif defaults:
            (named[name],) = defaults
    return named


@cache
def _schema(op: OpOverload) -> tuple[tuple[str, tuple[Any, ...], bool], ...]:
    """Name, default if there is one, and whether it goes by name alone, of every argument: torch makes them anew."""
    return tuple(
        (a.name, (a.default_value,) if a.has_default_value() else (), a.kwarg_only) for a in op._schema.arguments
    )


def arguments_of(node: Node) -> dict[str, Any]:
    """Name the arguments of a graph's call; none of anything else."""
    return bind(node.target, node.args, node.kwargs) if node.op == "call_function" else {}


def invoke(op: Any, arguments: Mapping[str, Any]) -> Any:
    """Call an operator, or the function that it stands for, with arguments named as `bind` names them."""
    function = record(op).function
    if function is not None or not isinstance(op, OpOverload):
        return (function or op)(*arguments.values())
    given = [(name, alone) for name, _, alone in _schema(op) if name in arguments]
    positional = [arguments[name] for name, alone in given if not alone]
    keyword = {name: arguments[name] for name, alone in given if alone}
    return op(*positional, **keyword)


def leaves(tree: Any) -> list[Any]:
    """List what lists, tuples and dicts hold: arguments and results of operators nest in nothing else."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, (list, tuple)) else [tree]


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to every leaf."""
    if isinstance(tree, dict):
        return {name: mapped(function, part) for name, part in tree.items()}
    return type(tree)(mapped(function, part) for part in tree) if isinstance(tree, (list, tuple)) else function(tree)


def slope(function: Callable[[Tensor], Any], z: Tensor) -> Tensor:
    """Differentiate an elementwise function at every entry of z: the same shape and dtype."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        y = function(leaf)
        if not y.requires_grad:  # no path from z to y: a constant
            return torch.zeros_like(z)
        (gradient,) = torch.autograd.grad(y.sum(), leaf)
    return gradient.detach()


def scales(function: Callable[[Tensor], Any], slope_at: Callable[[Tensor], Tensor], z: Tensor) -> bool:
    """Tell whether rescaling z a little rescales f(z) alike, z a(z) = f(z) at every entry (Euler's identity)."""
    y = function(z)
    near = 8 * torch.finfo(z.dtype).eps
    return y.shape == z.shape and torch.allclose(z * slope_at(z), y, rtol=near, atol=0, equal_nan=True)


@dataclass(frozen=True)
class Operation:
    """An operator, what it was called with and what it returned."""

    op: Any
    args: Mapping[str, Any]
    result: Any = None

    def __getitem__(self, name: str) -> Any:
        return self.args.get(name)

    @property
    def signal(self) -> Tensor:
        """The first argument, which carries the signal."""
        value: Tensor = next(iter(self.args.values()))
        return value

    def at(self, value: Tensor) -> Any:
        """Call the operator on another signal."""
        return invoke(self.op, {**self.args, next(iter(self.args)): value})

    def slope(self, z: Tensor) -> Tensor:
        """The gate a(z) of an activation: as its record has it, or by autograd."""
        own = record(self.op).slope
        return slope(self.at, z) if own is None else own(z, *list(self.args.values())[1:])


def per_axis(value: int | Sequence[int] | None, ndim: int, default: Sequence[int] = ()) -> list[int]:
    """Spread a setting over all axes, as convolutions and pooling take theirs; `default` where there is none."""
    if value is None or value == []:
        return list(default)
    return [value] * ndim if isinstance(value, int) else list(value) * (ndim // len(value))
