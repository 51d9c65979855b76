"""Divisions by what parameters make, as products with its inverse, which is a weight."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch.fx import Node

from capalloc._operators.calls import arguments_of

aten = torch.ops.aten


def multiply_by_inverses(nodes: Iterable[Node], inputs: str, params: Collection[str]) -> tuple[Node, ...]:
    """Write z / w as z (1 / w) where parameters make w and the inputs do not, and give all nodes."""
    moving: set[Node] = set()
    made: set[Node] = set()
    found: list[Node] = []
    for node in nodes:
        used = node.all_input_nodes
        if node.name == inputs or not moving.isdisjoint(used):
            moving.add(node)
        elif node.name in params or not made.isdisjoint(used):
            made.add(node)
        given = arguments_of(node) if node.target is aten.div.Tensor and node in moving else {}
        if given.get("other") in made:
            with node.graph.inserting_before(node):
                inverse = node.graph.call_function(aten.reciprocal.default, (given["other"],))
            inverse.meta = {**node.meta, "val": torch.empty_like(given["other"].meta["val"])}
            node.target, node.args = aten.mul.Tensor, (given["self"], inverse)
            made.add(inverse)
            found.append(inverse)
        found.append(node)
    return tuple(found)
