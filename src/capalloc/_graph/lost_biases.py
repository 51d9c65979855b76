"""Biases that a norm takes away again: the model is the same without them, and they have no derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from capalloc._operators.calls import arguments_of
from capalloc._operators.records import record

aten = torch.ops.aten


def drop_lost_biases(graph: Graph) -> None:
    """Take the bias from every convolution whose only reader subtracts each channel's mean over its positions."""
    for node in graph.nodes:
        given = arguments_of(node)
        made = given.get("input")
        if not isinstance(made, Node) or record(made.target).kind != "convolution" or len(made.users) > 1:
            continue
        if _centres_channels(node, given, made):
            made.args, made.kwargs = (), {**arguments_of(made), "bias": None}


def _centres_channels(node: Node, given: dict[str, Any], made: Node) -> bool:
    """Tell whether a norm's mean is of the example, over positions alone; the channels are axis 1."""
    shape = made.meta["val"].shape
    if node.target is aten.instance_norm.default:
        return bool(given["use_input_stats"])
    if node.target is aten.group_norm.default:
        return bool(given["num_groups"] == shape[1])
    return node.target is aten.layer_norm.default and len(given["normalized_shape"]) < len(shape) - 1
