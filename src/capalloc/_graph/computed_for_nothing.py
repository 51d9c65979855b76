"""Work of a graph that is for nothing: biases that a norm takes away again, and terms that a sum takes zero times."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from capalloc._operators.calls import arguments_of
from capalloc._operators.records import record

aten = torch.ops.aten


def drop_what_is_lost(graph: Graph) -> None:
    """Take both from a graph."""
    _drop_lost_biases(graph)
    _zero_lost_terms(graph)


def _drop_lost_biases(graph: Graph) -> None:
    """Take the bias from every convolution whose only reader subtracts each channel's mean over its positions."""
    for node in graph.nodes:
        given = arguments_of(node)
        made = given.get("input")
        if not isinstance(made, Node) or record(made.target).kind != "convolution" or len(made.users) > 1:
            continue
        if _centres_channels(node, given, made):
            made.args, made.kwargs = (), {**arguments_of(made), "bias": None}


def _zero_lost_terms(graph: Graph) -> None:
    """Write `add(h, g, alpha=0)` as `h + 0 * g`, in which no path leads through g."""
    for node in graph.nodes:
        given = arguments_of(node)
        term = "self" if node.target in (aten.rsub.Scalar, aten.rsub.Tensor) else "other"
        if record(node.target).kind != "sum" or given["alpha"] != 0 or not isinstance(given[term], Node):
            continue
        with graph.inserting_before(node):
            zero = graph.call_function(aten.mul.Tensor, (given[term], 0))
        zero.meta.update(given[term].meta)
        node.args, node.kwargs = tuple({**given, term: zero}[name] for name in ("self", "other")), {}


def _centres_channels(node: Node, given: dict[str, Any], made: Node) -> bool:
    """Tell whether a norm's mean is of the example, over positions alone; the channels are axis 1."""
    shape = made.meta["val"].shape
    if node.target is aten.instance_norm.default:
        return bool(given["use_input_stats"])
    if node.target is aten.group_norm.default:
        return bool(given["num_groups"] == shape[1])
    return node.target is aten.layer_norm.default and len(given["normalized_shape"]) < len(shape) - 1
