"""A copy of the model that the methods may do with as they like, and what it needs to run as the user's does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from capalloc._model.exported import SavedModel
from capalloc._runtime.surroundings import forward_defaults


def private_copy(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Copy a model in evaluation mode, without a tensor that `model` has too, cast to `dtype`.

    What stands for a saved program is one already; its tensors are the program's, which nothing writes to. Tensors
    that a module keeps from its last run are NaN in the copy: a run makes them anew, and one that reads them is seen.
    """
    if isinstance(model, SavedModel) and dtype is None:
        return model.eval()
    kept = {id(t): torch.full_like(t, torch.nan, requires_grad=False) for t in _kept(model)}
    try:
        copied = copy.deepcopy(model, dict(kept))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"model cannot be copied, and the methods work on a copy: {error}") from error
    frozen = copied.eval().requires_grad_(False)
    if (defaults := forward_defaults()) is not None and not isinstance(model, SavedModel):
        surround(frozen, lambda x: defaults())
    return frozen if dtype is None else frozen.to(dtype)


def keeps_tensors(model: nn.Module) -> bool:
    """Tell whether modules keep tensors that they computed from others."""
    return any(True for _ in _kept(model))


def surround(model: nn.Module, context: Callable[[Tensor], AbstractContextManager[Any]]) -> None:
    """Run every forward pass of the copy inside a context that its examples decide."""
    stack = ExitStack()

    def enter(module: nn.Module, args: Any) -> None:
        stack.enter_context(context(args[0]))

    def leave(module: nn.Module, args: Any, returned: Any) -> None:
        stack.close()

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)


def widen(model: nn.Module, narrow: torch.dtype, wide: torch.dtype) -> None:
    """Let what forward makes in `narrow` be in `wide` where the examples are."""
    surround(model, lambda x: Widened(narrow, wide) if x.dtype is wide else nullcontext())


def spare_inputs(model: nn.Module) -> None:
    """Give the copy inputs of its own to write to."""
    model.register_forward_pre_hook(lambda module, args: tuple(x.clone() for x in args))


class Widened(TorchFunctionMode):
    """Runs in one precision what names another, as float32 tensors do that forward makes in a model cast to float64."""

    def __init__(self, narrow: torch.dtype, wide: torch.dtype) -> None:
        super().__init__()
        self.narrow, self.wide = narrow, wide

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one call of torch."""
        if func is Tensor.float and self.narrow is torch.float32:
            return args[0].to(self.wide)
        args, kwargs = pytree.tree_map(self._cast, (tuple(args), kwargs or {}))
        returned = func(*args, **kwargs)
        return pytree.tree_map_only(Tensor, self._cast, returned)

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.wide) if value.dtype is self.narrow else value
        return self.wide if value is self.narrow else value


def _kept(model: nn.Module) -> Iterator[Tensor]:
    """Give the tensors with a gradient's graph that modules hold beside parameters and buffers."""
    for module in model.modules():
        pending = [value for name, value in vars(module).items() if not name.startswith("_")]
        while pending:
            value = pending.pop()
            if isinstance(value, Tensor) and value.grad_fn is not None:
                yield value
            elif isinstance(value, (list, tuple, Mapping)):
                pending += value.values() if isinstance(value, Mapping) else value
