"""Runs of a model with other tensors in the place of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def call_with(model: nn.Module, values: Mapping[str, Tensor], args: tuple[Any, ...]) -> Any:
    """Run a model with tensors in the place of some parameters, in every module that holds them.

    Each module counts once, however many names it has: torch replaces a tensor by every name of its module, and then
    takes the second name's for the module's own and leaves the replacement there.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    instead = {id(own[name]): value for name, value in values.items()}
    places = {
        f"{path}.{name}" if path else name: instead[id(held)]
        for path, module in model.named_modules()
        for name, held in module._parameters.items()
        if id(held) in instead
    }
    return functional_call(model, places, args, tie_weights=False)
