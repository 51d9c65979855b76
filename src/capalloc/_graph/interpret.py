"""Run a captured graph call by call; values are let go after their last use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.fx import Node

from capalloc._operators.calls import arguments_of, invoke, mapped

if TYPE_CHECKING:  # a capture runs its own graph to check it
    from capalloc._graph.capture import Graph

Values = dict[Node, Any]


def interpret(
    graph: Graph,
    known: Values,
    call: Callable[[Node, dict[str, Any]], Any],
    reads: Callable[[Node], Iterable[Node]] = lambda node: node.all_input_nodes,
) -> Iterator[tuple[Node, list[Any]]]:
    """Give every call's node in turn, once it has run, and the values that nobody reads after it.

    Args:
        graph: a captured graph.
        known: what its placeholders stand for; holds the other values too while they are needed.
        call: hook that makes a node's value from its arguments, by name, with values in the place of nodes.
        reads: the nodes whose values a call needs.

    """
    last_use = {used: node for node in graph.calls() for used in reads(node)}
    for node in graph.calls():
        known[node] = call(node, fill(arguments_of(node), known))
        done = [used for used in reads(node) if last_use[used] is node and used is not graph.output]
        yield node, [known.pop(used) for used in done]


def placeholders(graph: Graph, batch: Tensor) -> Values:
    """Give the values of the inputs, and of parameters as constants."""
    values: Values = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            constant = graph.constants.get(node.name)
            values[node] = constant.detach() if isinstance(constant, Tensor) else constant
            if node.name == graph.input:
                values[node] = batch
    return values


def evaluate(graph: Graph, batch: Tensor, params: Mapping[str, Tensor] = MappingProxyType({})) -> Values:
    """Give the value of every node; `params`, by name, stand in the place of the graph's own."""
    known = placeholders(graph, batch)
    known |= {node: params[name] for node in known if (name := graph.params.get(node.name, "")) in params}
    values = dict(known)
    for node, _ in interpret(graph, known, lambda node, arguments: invoke(node.target, arguments)):
        values[node] = known[node]
    return values


def fill(tree: Any, values: Mapping[Node, Any]) -> Any:
    """Put values in the place of nodes."""
    return mapped(lambda a: values[a] if isinstance(a, Node) else a, tree)
