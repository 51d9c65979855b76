"""Products with weights in the place of divisions by parameters, powers of them, and systems of equations with them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch.fx import Node

from capalloc._operators.calls import arguments_of

aten = torch.ops.aten
#: Systems of equations: the arguments for the matrix and for what is solved for.
SOLVED: dict[Any, tuple[str, str]] = {
    aten.linalg_solve.default: ("A", "B"),
    aten.linalg_solve_triangular.default: ("self", "B"),
}


def weigh_by_parameters(nodes: Iterable[Node], inputs: str, params: Collection[str]) -> tuple[Node, ...]:
    """Write z / w as z (1 / w), z^w as exp(w log z), A^-1 z as a product, of parameters' w and A, and give all nodes.

    What parameters make of what depends on the inputs too stays as it is.
    """
    moving: set[Node] = set()
    made: set[Node] = set()
    found: list[Node] = []
    for node in nodes:
        used = node.all_input_nodes
        if node.name == inputs or not moving.isdisjoint(used):
            moving.add(node)
        elif node.name in params or not made.isdisjoint(used):
            made.add(node)
        if node in moving and not made.isdisjoint(used):
            for new in _rewritten(node, made):
                (moving if not moving.isdisjoint(new.all_input_nodes) else made).add(new)
                found.append(new)
        found.append(node)
    return tuple(found)


def _rewritten(node: Node, made: Collection[Node]) -> list[Node]:
    """Turn a call into a product where it is none, and give the nodes that go before it."""
    before: list[Node] = []

    def new(op: Any, *args: Any, **kwargs: Any) -> Node:
        with node.graph.inserting_before(node):
            call = node.graph.call_function(op, args, kwargs)
        value = [a.meta["val"] if isinstance(a, Node) else a for a in args]
        call.meta = {**node.meta, "val": op(*value, **kwargs)}
        before.append(call)
        return call

    given = arguments_of(node)
    if node.target is aten.div.Tensor and given["other"] in made:
        node.target, node.args = aten.mul.Tensor, (given["self"], new(aten.reciprocal.default, given["other"]))
    elif node.target is aten.pow.Tensor_Tensor:
        base, exponent = given["self"], given["exponent"]
        if base not in made:  # torch has no derivative of a negative one along the exponent
            base = new(aten.clamp_min.default, base, torch.finfo(base.meta["val"].dtype).tiny)
        node.target, node.args = aten.exp.default, (new(aten.mul.Tensor, new(aten.log.default, base), exponent),)
    elif node.target in SOLVED:
        _multiply_by_inverse(node, given, made, new)
    return before


def _multiply_by_inverse(node: Node, given: dict[str, Any], made: Collection[Node], new: Callable[..., Node]) -> None:
    matrix, solved = (given[name] for name in SOLVED[node.target])
    shapes = [used.meta["val"].shape for used in (matrix, solved)]
    if matrix not in made or len(shapes[1]) < len(shapes[0]):  # a vector for each matrix
        return
    options = {name: a for name, a in given.items() if name not in SOLVED[node.target]}
    like = matrix.meta["val"]
    unit = new(aten.eye.m, *shapes[0][-1:] * 2, dtype=like.dtype, device=like.device)
    if len(shapes[0]) > 2:
        unit = new(aten.expand.default, unit, list(shapes[0]))
    inverse = new(node.target, matrix, unit, **options)
    node.target, node.kwargs = aten.matmul.default, {}
    node.args = (inverse, solved) if options["left"] else (solved, inverse)
