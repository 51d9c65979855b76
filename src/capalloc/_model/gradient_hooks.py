"""Hooks that gradients pass: those that change them, of which no capacity is, and those that look on, left out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from capalloc._model.agree import agree
from capalloc._model.custom_functions import learning
from capalloc._model.private_copy import surround


class WithoutHooks(TorchFunctionMode):
    """Lets `Tensor.register_hook` register nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one call of torch."""
        return RemovableHandle(OrderedDict()) if func is Tensor.register_hook else func(*args, **(kwargs or {}))


def leave_hooks_out(model: nn.Module, outputs: Callable[[Tensor], Tensor], x: Tensor, *, in_forward: bool) -> None:
    """Take out of a copy the hooks of modules on gradients, and those that it registers `in_forward`.

    Raises:
        ValueError: they change gradients.

    """
    names = [name or "model" for name, m in model.named_modules() if m._backward_hooks or m._backward_pre_hooks]
    if not names and not in_forward:
        return
    hooked = _gradients(model, outputs, x)
    for module in model.modules():
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    if in_forward:
        surround(model, lambda x: WithoutHooks())
    plain = _gradients(model, outputs, x)
    if hooked is None or plain is None or not all(agree(a, b) for a, b in zip(hooked, plain, strict=True)):
        where = f"modules ({', '.join(names)})" if names else "a tensor in forward"
        raise ValueError(
            f"a backward hook of {where} changes gradients, and constraints are derivatives of the outputs: remove it "
            "(handle.remove()), or write what it does in forward: detach(), or s(x) + (f(x) - s(x)).detach() with the "
            "function s whose gradient it gives"
        )


def _gradients(model: nn.Module, outputs: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor] | None:
    params = [p for p in model.parameters() if p.is_floating_point() or p.is_complex()]
    with learning(params):
        own = x.clone().requires_grad_()
        y = outputs(own)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
        try:
            return [*torch.autograd.grad(y, [own, *params], weights, materialize_grads=True, allow_unused=True)]
        except Exception:  # a hook's own code may raise anything
            return None
