"""The nesting of what a saved program takes and returns, in containers of Python and one of our own.

A file names the types of its containers. None is looked up: a type other than these becomes a dictionary whose entries
are attributes too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch.utils import _pytree as pytree

STRUCTURE_PROTOCOL = 1
DICTIONARIES = ("dict", "OrderedDict", "immutable_dict")
LISTS = ("list", "immutable_list", "deque")


class Returned(dict[str, Any]):
    """A program's results by names: entries by key, by attribute and by place."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the program returns {', '.join(self)}, and no {name}") from None

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, (int, slice)) else super().__getitem__(key)


def _apart(returned: Returned) -> tuple[list[Any], list[str]]:
    return list(returned.values()), list(returned)


def _together(values: Iterable[Any], names: Any) -> Returned:
    return Returned(zip(names, values, strict=True))


pytree.register_pytree_node(Returned, _apart, _together)


def read_structure(text: str, fields: Mapping[str, Any]) -> pytree.TreeSpec:
    """Read a nesting; `fields` are the names in named tuples, by type."""
    protocol, stored = json.loads(text)
    if protocol != STRUCTURE_PROTOCOL:
        raise ValueError(f"a nesting of the form {str(protocol)[:20]}")
    return pytree.tree_structure(_nested(stored, fields))


def _nested(stored: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
    kind, parts = stored["type"], [_nested(part, fields) for part in stored["children_spec"]]
    if kind is None:
        return 0
    name = str(kind).rpartition(".")[2]
    if name == "tuple":
        return tuple(parts)
    if name in LISTS:
        return parts
    names = _names(stored["context"], len(parts), fields)
    if name in DICTIONARIES or not all(isinstance(key, str) for key in names):
        return dict(zip(names, parts, strict=True))
    return Returned(zip(names, parts, strict=True))


def _names(context: Any, count: int, fields: Mapping[str, Any]) -> list[Any]:
    """Give the names of a container's entries: the first list of as many in what the file says of it."""
    if isinstance(context, str) and context in fields:
        return list(fields[context]["field_names"])
    try:
        pending = [json.loads(context) if isinstance(context, str) else context]
    except ValueError:
        pending = []
    while pending:
        found = pending.pop(0)
        if isinstance(found, list) and len(found) == count and all(isinstance(key, (str, int)) for key in found):
            return found
        pending += found if isinstance(found, list) else found.values() if isinstance(found, dict) else []
    return [str(k) for k in range(count)]
