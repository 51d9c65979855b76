"""Tensors in dicts, tuples and dataclasses inside each other: taken apart by name, and put together again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """The place of a tensor."""

    name: str


def check_nesting(value: Any, name: str, inside: tuple[int, ...] = ()) -> None:
    """Refuse a container that holds itself, which has no end.

    Raises:
        ValueError: one does.

    """
    if id(value) in inside:
        raise ValueError(f"{name} is a container that holds itself; let it hold only what the model reads")
    for key, part in _parts(value) or ():
        check_nesting(part, f"{name}[{key!r}]", (*inside, id(value)))


def take_apart(value: Any, found: dict[str, Tensor], name: str = "") -> Any:
    """Put the tensors that a value holds into `found`, by dotted names, and give it with slots in their place."""
    if isinstance(value, Tensor):
        found[name] = value
        return Slot(name)
    parts = _parts(value)
    return value if parts is None else _made_of(value, [take_apart(v, found, f"{name}.{key}") for key, v in parts])


def put_together(frame: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(frame, Slot):
        return tensors[frame.name]
    parts = _parts(frame)
    return frame if parts is None else _made_of(frame, [put_together(part, tensors) for _, part in parts])


def _parts(value: Any) -> list[tuple[Any, Any]] | None:
    """List what a container holds, by name; None for what is none."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    if is_dataclass(value) and not isinstance(value, (type, Slot)):
        return [(f.name, getattr(value, f.name)) for f in fields(value)]
    return None


def _made_of(value: Any, parts: Sequence[Any]) -> Any:
    """A container like `value` of other parts."""
    if isinstance(value, (tuple, list)):
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    made = copy.copy(value) if isinstance(value, MutableMapping) or not isinstance(value, Mapping) else dict(value)
    for (name, _), part in zip(_parts(value) or (), parts, strict=True):
        if isinstance(value, Mapping):
            made[name] = part
        else:
            object.__setattr__(made, name, part)  # of a frozen one too
    return made
