"""Custom autograd functions that a model calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree


def custom_functions(returned: Any) -> list[type]:
    """List the classes of custom functions that gradients of what a model returned pass."""
    found: dict[type, None] = {}
    tensors = (y for y in pytree.tree_leaves(returned) if isinstance(y, Tensor))
    pending: list[Any] = [y.grad_fn for y in tensors if y.grad_fn is not None]
    known = {*pending}
    while pending:
        node = pending.pop()
        if isinstance(node, BackwardCFunction):
            found[node._forward_cls] = None  # type: ignore[attr-defined]
        new = {used for used, _ in node.next_functions if used is not None} - known
        known |= new
        pending += new
    return list(found)


@contextmanager
def noted(model: nn.Module) -> Iterator[dict[str, None]]:
    """Note the names of custom functions that are not torch's own, for as long as a model is traced."""
    names: dict[str, None] = {}

    def note(module: nn.Module, args: Any, returned: Any) -> None:
        if not torch.compiler.is_dynamo_compiling():
            found = (f for f in custom_functions(returned) if f.__module__.partition(".")[0] != "torch")
            names.update(dict.fromkeys(f.__name__ for f in found))

    with learning(model.parameters()):
        handle = model.register_forward_hook(note)
        try:
            yield names
        finally:
            handle.remove()


@contextmanager
def learning(params: Iterable[Tensor]) -> Iterator[None]:
    """Let parameters require gradients for a while."""
    still = [p for p in params if not p.requires_grad and (p.is_floating_point() or p.is_complex())]
    try:
        for p in still:
            p.requires_grad_()
        yield
    finally:
        for p in still:
            p.requires_grad_(False)
