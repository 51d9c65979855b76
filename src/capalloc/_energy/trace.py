"""Walk the captured graph with (value, energy) pairs: graph + examples -> program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from capalloc._energy.carriers import Carriers, find
from capalloc._energy.gates import GateSource, gaussian_squared_slope, squared_slope
from capalloc._energy.program import Energy, Program
from capalloc._energy.rules import RULES, Call, Traced, linear_operator, value_of
from capalloc._energy.symmetries.labels import GROUND
from capalloc._energy.symmetries.sharing import relate_uses
from capalloc._graph.calls import bind, invoke
from capalloc._graph.capture import Graph, module_path


@dataclass(frozen=True)
class Watch:
    """What a trace notes and changes beside the plain walk."""

    nodes: frozenset[Node] = frozenset()  # nodes whose slots are noted in `Program.nodes`
    multipliers: Mapping[Node, float] = field(default_factory=dict)  # of the values of some nodes


NOTHING_WATCHED = Watch()


def trace(
    graph: Graph,
    batch: Tensor,
    gates: GateSource,
    selected: set[str],
    dtype: torch.dtype = torch.float64,
    *,
    layers: bool = True,
    carriers: Carriers | None = None,
    watch: Watch = NOTHING_WATCHED,
) -> Program:
    """The energy network of a batch.

    Args:
        graph: the captured model.
        batch: as many examples as it was captured for.
        gates: where squared slopes come from.
        selected: names of the free parameters.
        dtype: of the energies.
        layers: keep every layer's energies.
        carriers: what carries path energy, if it has been found before.
        watch: nodes to note or to change.

    """
    carriers = carriers or find(graph)
    program = Program(dtype, found=graph.found)
    known: dict[Node, Traced] = {}
    users: Counter[int] = Counter()  # nodes to come that hold an energy
    last_use = {used: node for node in graph.nodes for used in _reads(node, carriers)}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for node in graph.nodes:
            if node.op == "placeholder":
                known[node] = _leaf(graph, node, batch, program, selected, carriers)
            elif node.op == "call_function":
                made = len(program.values)
                known[node] = _multiplied(program, _call(node, known, program, gates, carriers), watch, node)
                _name_layer(program, node, known[node].energy)
                if layers:
                    program.needed.update(program.layers.values())
                slots = _slots(known[node])
                if node in watch.nodes and slots:
                    program.nodes[node.name] = slots[0]
                users.update(slots)
                program.release({*range(made, len(program.values))} - set(slots))
                for used in _reads(node, carriers):  # values are needed for gates only: let them go
                    if last_use[used] is node and used is not graph.output:
                        users.subtract(_slots(known[used]))
                        program.release(slot for slot in _slots(known[used]) if users[slot] <= 0)
                        known[used] = Traced(None)
    energy = known[graph.output].energy
    if not isinstance(energy, Energy) or not energy.is_signal:
        raise ValueError("outputs do not depend on inputs along any path that carries energy")
    if torch.isnan(known[graph.output].value).any():
        raise ValueError("the model's outputs hold NaN; drop or repair the examples that give them")
    program.output = energy.slot
    assert energy.labels is not None
    program.channels.tie(energy.labels, torch.tensor(GROUND))
    relate_uses(program)
    return program


def _multiplied(program: Program, traced: Traced, watch: Watch, node: Node) -> Traced:
    factor = watch.multipliers.get(node, 1.0)
    if factor == 1.0:
        return traced
    return Traced(traced.value * factor, program.gate(traced.energy, factor**2))


def _reads(node: Node, carriers: Carriers) -> set[Node]:
    activation = carriers.activations.get(node)
    return {*node.all_input_nodes, *(activation.reads() if activation else ())}


def _leaf(graph: Graph, node: Node, batch: Tensor, program: Program, selected: set[str], carriers: Carriers) -> Traced:
    if node.name == graph.input:
        return Traced(batch, program.start(torch.ones_like(batch)))
    value = graph.constants.get(node.name)
    name = graph.params.get(node.name)
    if name is None or value is None:
        return Traced(value)
    if name not in selected:
        return Traced(value)
    # A parameter seen through functions of its entries counts as one whatever they are: its leaf is 1, and each
    # use multiplies it by the square of what it makes of the entry.
    energy = program.parameter(name, torch.ones_like(value) if node in carriers.reparametrised else value)
    return Traced(value, energy if node in carriers.carrying else None)


def _call(node: Node, known: dict[Node, Traced], program: Program, gates: GateSource, carriers: Carriers) -> Traced:
    def fill(argument: Any) -> Any:
        if not isinstance(argument, Node):
            return argument
        traced = known[argument]
        if argument in carriers.reparametrised and node in carriers.carrying and node not in carriers.bent:
            return Traced(traced.value, _made_of(program, traced, traced.value))
        return traced

    args, kwargs = map_arg((node.args, dict(node.kwargs)), fill)
    arguments = bind(node.target, args, kwargs)
    result = invoke(node.target, {name: value_of(argument) for name, argument in arguments.items()})
    if node not in carriers.carrying:
        return Traced(result)
    if node in carriers.bent:
        return Traced(result, _made_of(program, known[carriers.bent[node]], result))
    call = Call(node.target, arguments, program, gates, module_path(node), result)  # type: ignore[arg-type]
    if carriers.gates(node):
        gated = {carriers.activations[node].root} if node in carriers.activations else set(node.all_input_nodes)
        energies = [known[used].energy for used in gated]
        program.decoupled += [e for e in energies if isinstance(e, Energy) and e.is_signal]
    if node in carriers.activations:
        return Traced(result, _activation(node, known, call, carriers))
    arguments |= {name: _frozen(arguments[name]) for name in carriers.frozen.get(node, ())}
    leaves = pytree.tree_leaves(arguments, is_leaf=lambda a: isinstance(a, Traced))
    carried = any(isinstance(a, Traced) and a.energy is not None for a in leaves)
    if not carried or not _has_gradient(result):
        return Traced(result)
    return Traced(result, RULES.get(node.target, linear_operator)(call))


def _made_of(program: Program, leaf: Traced, value: Tensor) -> Energy | None:
    return None if leaf.energy is None else program.gate(leaf.energy, value.to(program.dtype).square())


def _frozen(argument: Any) -> Any:
    """An argument that is a gate: its value, without its paths."""
    return Traced(argument.value) if isinstance(argument, Traced) else argument


def _activation(node: Node, known: dict[Node, Traced], call: Call, carriers: Carriers) -> Energy | None:
    """A product whose factors are functions of one tensor, entry by entry: the squared slope there."""
    found = carriers.activations[node]
    values = {used: known[used].value for used in found.reads()}
    root = known[found.root]
    if not isinstance(root.energy, Energy) or call.gates == "unit":
        return root.energy if isinstance(root.energy, Energy) else None

    phi = found.function(values)
    slope = gaussian_squared_slope(phi) if call.gates == "gaussian" else squared_slope(phi, root.value)
    return call.program.gate(root.energy, slope)


def _has_gradient(result: Any) -> bool:
    """Whether gradients can pass: masks and indices carry no path."""
    tensors = (r for r in pytree.tree_leaves(result) if isinstance(r, Tensor))
    return any(r.dtype.is_floating_point or r.dtype.is_complex for r in tensors)


def _slots(traced: Traced) -> list[int]:
    energies = traced.energy if isinstance(traced.energy, tuple) else (traced.energy,)
    return [energy.slot for energy in energies if energy is not None]


def _name_layer(program: Program, node: Node, energy: Any) -> None:
    if isinstance(energy, Energy) and energy.is_signal:
        program.layers[module_path(node) or node.name] = energy.slot
