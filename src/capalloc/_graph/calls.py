"""Calls of ATen operators with arguments named as in their schemas."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload

#: A view holds for the strides it was recorded with, which another attention kernel may not give.
STRIDE_FREE = {torch.ops.aten.view.default: torch.ops.aten.reshape.default}


def bind(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by their name in the operator's schema, defaults filled in."""
    if not isinstance(op, OpOverload):
        return {str(k): a for k, a in enumerate(args)} | kwargs
    named = {}
    for k, argument in enumerate(op._schema.arguments):
        if k < len(args):
            named[argument.name] = args[k]
        elif argument.name in kwargs:
            named[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            named[argument.name] = argument.default_value
    return named


def invoke(op: Any, arguments: dict[str, Any]) -> Any:
    """Call an operator with arguments named as `bind` names them."""
    if not isinstance(op, OpOverload):
        return op(*arguments.values())
    positional = [arguments[a.name] for a in op._schema.arguments if not a.kwarg_only and a.name in arguments]
    keyword = {a.name: arguments[a.name] for a in op._schema.arguments if a.kwarg_only and a.name in arguments}
    return STRIDE_FREE.get(op, op)(*positional, **keyword)
