"""Walk the captured graph with (value, energy) pairs: graph + examples -> program."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from capalloc.energy.capture import Graph, module_path
from capalloc.energy.channels import GROUND
from capalloc.energy.gates import GateSource
from capalloc.energy.program import Energy, Program
from capalloc.energy.rules import RULES, Call, Traced, bind, invoke
from capalloc.energy.sharing import relate_uses


def trace(graph: Graph, batch: Tensor, gates: GateSource, selected: set[str]) -> Program:
    """The energy network of a batch; `selected` names the free parameters."""
    program = Program()
    known: dict[Node, Traced] = {}
    last_use = {used: node for node in graph.nodes for used in node.all_input_nodes}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for node in graph.nodes:
            if node.op == "placeholder":
                known[node] = _leaf(graph, node, batch, program, selected)
            elif node.op == "call_function":
                known[node] = _call(node, known, program, gates)
                _name_layer(program, node, known[node].energy)
                for used in node.all_input_nodes:  # values are needed for gates only: let them go
                    if last_use[used] is node and used is not graph.output:
                        known[used] = Traced(None)
    energy = known[graph.output].energy
    if not isinstance(energy, Energy) or not energy.is_signal:
        raise ValueError("outputs do not depend on inputs along any path that carries energy")
    program.output = energy.slot
    assert energy.labels is not None
    program.channels.tie(energy.labels, torch.tensor(GROUND))
    relate_uses(program)
    return program


def _leaf(graph: Graph, node: Node, batch: Tensor, program: Program, selected: set[str]) -> Traced:
    if node.name == graph.input:
        return Traced(batch, program.start(torch.ones_like(batch)))
    value = graph.constants.get(node.name)
    name = graph.params.get(node.name)
    if name is None or value is None:
        return Traced(value)
    energy = program.parameter(name, value) if name in selected else None
    return Traced(value, energy)


def _call(node: Node, known: dict[Node, Traced], program: Program, gates: GateSource) -> Traced:
    def fill(argument: Any) -> Any:
        return known[argument] if isinstance(argument, Node) else argument

    is_node = lambda a: isinstance(a, Node)  # noqa: E731
    args, kwargs = pytree.tree_map(fill, (node.args, dict(node.kwargs)), is_leaf=is_node)
    arguments = bind(node.target, args, kwargs)
    plain = pytree.tree_map(
        lambda a: a.value if isinstance(a, Traced) else a, arguments, is_leaf=lambda a: isinstance(a, Traced)
    )
    result = invoke(node.target, plain)
    leaves = pytree.tree_leaves(arguments, is_leaf=lambda a: isinstance(a, Traced))
    carried = any(isinstance(a, Traced) and a.energy is not None for a in leaves)
    if not carried or not _is_real(result):
        return Traced(result)
    call = Call(node.target, arguments, program, gates, module_path(node), result)  # type: ignore[arg-type]
    if node.target not in RULES:
        raise call.unsupported("it has none")
    return Traced(result, RULES[node.target](call))


def _is_real(result: Any) -> bool:
    """Whether gradients can pass: masks and indices carry no path."""
    return any(isinstance(r, Tensor) and r.dtype.is_floating_point for r in pytree.tree_leaves(result))


def _name_layer(program: Program, node: Node, energy: Any) -> None:
    if isinstance(energy, Energy) and energy.is_signal:
        program.layers[module_path(node) or node.name] = energy.slot
