"""Writes in place as the operators that make a new tensor, where nobody could tell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node

from capalloc._operators.records import record


def make_out_of_place(graph: Graph) -> None:
    """Replace `out += skip` and its kind by `out + skip`, where `out` is a new tensor that nothing reads later.

    What remains, writes to inputs, views and tensors that are read again, is for `torch.export` to take apart.
    """
    for node in graph.nodes:
        functional = _functional(node.target) if node.op == "call_function" else None
        if functional is not None and node.args and _is_new(node.args[0], node):
            node.target = functional


def _functional(target: Any) -> OpOverload | None:
    """Give the operator that returns what `target` writes to its first argument; None where there is none."""
    if not isinstance(target, OpOverload) or target.namespace != "aten" or not target._schema.is_mutable:
        return None
    written = [k for k, a in enumerate(target._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    name = target._schema.name.removeprefix("aten::")
    if written != [0] or not name.endswith("_") or name.startswith("_"):
        return None
    found = getattr(getattr(torch.ops.aten, name[:-1], None), target._overloadname, None)
    return found if isinstance(found, OpOverload) and not found._schema.is_mutable else None


def _is_new(value: Any, reader: Node) -> bool:
    """Tell whether a value is a tensor of its own, of one dtype with what it is combined with, and not read later."""
    if not isinstance(value, Node) or not _makes_new(value):
        return False
    if not all(user < reader and _makes_new(user) for user in value.users if user is not reader):
        return False
    made = [used.meta.get("val") for used in reader.all_input_nodes]
    return len({part.dtype for part in made if isinstance(part, Tensor)}) == 1


def _makes_new(node: Node) -> bool:
    """Tell whether a node makes a tensor that shares no memory with what it reads."""
    known = node.target
    if not isinstance(known, OpOverload) or known.namespace != "aten":
        return False
    alias = any(returned.alias_info is not None for returned in known._schema.returns)
    return not alias and record(known).kind not in ("copy", "movement", "piece")
