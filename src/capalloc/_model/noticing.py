"""A note of whether a model calls some functions of torch while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode


class Noticing(TorchFunctionMode):
    """Notes whether a function of torch that is looked for is called."""

    def __init__(self, wanted: Callable[[Any], bool]) -> None:
        super().__init__()
        self.wanted, self.seen = wanted, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one call of torch."""
        self.seen |= self.wanted(func)
        return func(*args, **(kwargs or {}))
