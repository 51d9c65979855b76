"""The values of a captured graph on a batch, by operators that function transforms and autograd know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from capalloc._graph.calls import bind
from capalloc._graph.calls import invoke as invoke_operator
from capalloc._graph.capture import Graph
from capalloc._model.exported import FUNCTIONS

Values = dict[Node, Any]


def evaluate(graph: Graph, batch: Tensor) -> Values:
    """The value of every node; parameters are constants."""
    values: Values = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            constant = graph.constants.get(node.name)
            values[node] = constant.detach() if isinstance(constant, Tensor) else constant
            if node.name == graph.input:
                values[node] = batch
        elif node.op == "call_function":
            values[node] = call(node, values)
    return values


def call(node: Node, values: Mapping[Node, Any]) -> Any:
    """An operator call on the values of its arguments."""
    return invoke(node.target, fill(bind(node.target, node.args, dict(node.kwargs)), values))


def invoke(op: Any, arguments: dict[str, Any]) -> Any:
    """An operator, as the function that it came from where that is what function transforms know."""
    return FUNCTIONS[op](*arguments.values()) if op in FUNCTIONS else invoke_operator(op, arguments)


def fill(tree: Any, values: Mapping[Node, Any]) -> Any:
    """Arguments with values in the place of nodes."""
    is_node = lambda a: isinstance(a, Node)  # noqa: E731
    return pytree.tree_map(lambda a: values[a] if isinstance(a, Node) else a, tree, is_leaf=is_node)
