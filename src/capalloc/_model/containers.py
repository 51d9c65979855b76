"""Plain lists, tuples and dicts of modules: what they hold that torch does not look for there."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

Held = tuple[str, Any]


def held_by(module: nn.Module) -> Iterator[Held]:
    """Give what a module's attributes are or contain, as `layers[0]`."""
    return contents((name, value) for name, value in vars(module).items() if not name.startswith("_"))


def contents(held: Iterable[Held]) -> Iterator[Held]:
    """Give what named values are or contain; a container is entered once, as it may hold itself."""
    entered: set[int] = set()
    pending = deque(held)
    while pending:
        name, value = pending.popleft()
        if not isinstance(value, (list, tuple, deque, Mapping)):
            yield name, value
        elif id(value) not in entered:
            entered.add(id(value))
            parts = value.items() if isinstance(value, Mapping) else enumerate(value)
            pending.extend((f"{name}[{key!r}]", part) for key, part in parts)


def unregistered(model: nn.Module) -> Iterator[str]:
    """Name what has parameters that torch does not find, in the containers of its modules."""
    own = {id(p) for p in model.parameters()}
    for path, module in model.named_modules():
        for name, value in held_by(module):
            parameters = value.parameters() if isinstance(value, nn.Module) else [value]
            if any(isinstance(p, nn.Parameter) and id(p) not in own for p in parameters):
                yield f"{path}.{name}".lstrip(".")
