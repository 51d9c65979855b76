"""Values of a captured graph at random weights and inputs, in float64, none of which is 0 by chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from capalloc._graph.capture import Graph
from capalloc._graph.interpret import Values, fill, placeholders
from capalloc._operators.calls import arguments_of, invoke
from capalloc._operators.records import record

#: Operators entry by entry that torch does not say are.
UNTAGGED = tuple(getattr(torch.ops.aten, name) for name in ("where", "__and__", "__or__", "__xor__"))


def reached_from(graph: Graph, names: Iterable[str]) -> set[Node]:
    """Find all nodes that depend on the placeholders named, in any way."""
    starts, found = {*names}, set()
    for node in graph.nodes:
        if node.name in starts or any(used in found for used in node.all_input_nodes):
            found.add(node)
    return found


def same_places(node: Node) -> bool:
    """Tell whether an entry of the result depends on the same entry of each argument alone, up to broadcasting."""
    op = node.target
    if op is torch.ops.aten.where.default:  # the places of what is true, tagged as its namesake is
        return False
    tagged = torch.Tag.pointwise in getattr(op, "tags", ()) or getattr(op, "overloadpacket", None) in UNTAGGED
    return record(op).pointwise or tagged


def compares(node: Node) -> bool:
    """Tell whether a call makes yes and no of numbers."""
    made = node.meta.get("val")
    read = [used.meta.get("val") for used in node.all_input_nodes]
    of_numbers = all(not isinstance(value, Tensor) or value.dtype != torch.bool for value in read)
    return isinstance(made, Tensor) and made.dtype == torch.bool and of_numbers


def is_floating(value: Any) -> bool:
    """Tell whether all tensors of a value have derivatives; sizes that depend on the data are no tensors."""
    tensors = (v for v in pytree.tree_leaves(value) if isinstance(v, Tensor))
    return all(v.dtype.is_floating_point or v.dtype.is_complex for v in tensors)


def double(value: Any) -> Any:
    """Take floating-point tensors to float64."""
    if not isinstance(value, Tensor) or not is_floating(value):
        return value
    return value.to(torch.complex128 if value.dtype.is_complex else torch.float64)


def evaluated(
    graph: Graph,
    batch: Tensor,
    generator: torch.Generator | None = None,
    *,
    learn: bool = False,
    fills: bool = False,
    decide: Callable[[Node, Tensor], Tensor] | None = None,
) -> Values:
    """Give the value of every node.

    Args:
        graph: a captured graph.
        batch: the inputs (examples, *inputs); of `generator`, only their shape counts.
        generator: draws other inputs and parameters.
        learn: whether the inputs require a gradient.
        fills: whether an activation that is 0, such as a closed gate, counts as open.
        decide: what comparisons answer, given the call and what it answered.

    """
    values = placeholders(graph, batch)
    drawn: dict[str, Tensor] = {}
    for node in values:
        if generator is None:
            break
        name = graph.params.get(node.name, node.name)
        if node.name == graph.input or node.name in graph.params:
            drawn.setdefault(name, _random_like(values[node], generator))
            values[node] = drawn[name]
        if node.name == graph.input:
            values[node] = values[node].requires_grad_(learn)
    changing = reached_from(graph, (graph.input, *graph.params))
    for node in graph.calls():
        arguments = fill(arguments_of(node), values)
        if node.target is torch.ops.aten.detach.default:  # hides a gradient, and no dependence
            values[node] = arguments["self"]
            continue
        if not node.users and node is not graph.output:
            continue  # such as a check that a tensor has another precision
        values[node] = _call(node, arguments, batch.dtype)
        if decide is not None and node in changing and compares(node):
            values[node] = decide(node, values[node])
        if fills and node in changing and isinstance(values[node], Tensor):
            assert generator is not None
            values[node] = _filled(node, values, changing, generator)
    return values


def _call(node: Node, arguments: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Call in float64, or in the model's own precision where an operator knows no other."""
    try:
        found = invoke(node.target, pytree.tree_map(double, arguments))
    except RuntimeError:
        own = lambda a: a.to(dtype) if isinstance(a, Tensor) and a.dtype == torch.float64 else a  # noqa: E731
        found = invoke(node.target, pytree.tree_map(own, arguments))
    return pytree.tree_map(double, found)


def generic(graph: Graph, batch: Tensor, generator: torch.Generator) -> Values:
    """Give values at random weights and inputs of which a zero says that it is always one."""
    return evaluated(graph, batch, generator, fills=True)


def _random_like(value: Tensor, generator: torch.Generator) -> Tensor:
    """Draw Gaussian numbers, those of weights as small as their inputs are many."""
    size = max(1, value[0].numel()) if value.ndim > 1 else 1
    found: Tensor = double(torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)) / size**0.5
    return found


def _filled(node: Node, values: Values, changing: set[Node], generator: torch.Generator) -> Tensor:
    """Replace zeros that an activation makes of what is not 0, and all that a comparison has decided."""
    value: Tensor = values[node]
    kind, reads = record(node.target).kind, [values[used] for used in node.all_input_nodes]
    decided = any(used in changing and not is_floating(values[used]) for used in node.all_input_nodes)
    local = same_places(node) and kind not in ("constant", "sum", "product", "quotient", "copy", "selection")
    if not value.dtype.is_floating_point or not (local or (decided and (same_places(node) or kind == "copy"))):
        return value
    open_ = torch.ones_like(value, dtype=torch.bool) if decided else value == 0
    for read in reads:
        if isinstance(read, Tensor) and is_floating(read) and read.shape == value.shape:
            open_ = open_ & (read != 0) & read.isfinite()
    return torch.where(open_, torch.randn(value.shape, generator=generator).to(value), value)
