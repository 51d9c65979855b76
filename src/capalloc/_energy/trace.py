"""Walk the captured graph with (value, energy) pairs: graph + examples -> program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from capalloc._energy.carriers import Carriers, find
from capalloc._energy.gate_sources import GateSource
from capalloc._energy.program import Energy, Program
from capalloc._energy.rules import Call, Traced, value_of
from capalloc._energy.rules.any_linear_operator import linear_operator
from capalloc._energy.symmetries.labels import GROUND
from capalloc._energy.symmetries.sharing import relate_uses
from capalloc._graph.capture import Graph, module_path
from capalloc._graph.interpret import interpret
from capalloc._operators.calls import invoke, slope
from capalloc._operators.records import record


@dataclass(frozen=True)
class Watch:
    """Nodes that a trace notes and values that it changes, beside the plain walk."""

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
    """Trace the energy network of a batch.

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
    tracing = _Tracing(program, gates, carriers, watch)
    tracing.start(graph, batch, selected)
    known = tracing.known
    users: Counter[int] = Counter()  # nodes to come that hold an energy
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        made = len(program.values)
        for node, done in interpret(graph, known, tracing.call, carriers.reads):
            slots = _slots(known[node])
            _name_layer(program, node, known[node].energy)
            if layers:
                program.needed.update(program.layers.values())
            if node in watch.nodes and slots:
                program.nodes[node.name] = slots[0]
            users.update(slots)
            program.release({*range(made, len(program.values))} - set(slots))
            users.subtract(slot for traced in done for slot in _slots(traced))
            program.release(slot for traced in done for slot in _slots(traced) if users[slot] <= 0)
            made = len(program.values)
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


@dataclass(frozen=True)
class _Tracing:
    """A program in the making."""

    program: Program
    gates: GateSource
    carriers: Carriers
    watch: Watch
    known: dict[Node, Traced] = field(default_factory=dict)
    leaves: dict[Node, Energy] = field(default_factory=dict)  # of parameters seen through functions of their entries

    def start(self, graph: Graph, batch: Tensor, selected: set[str]) -> None:
        for node in graph.nodes:
            if node.op == "placeholder":
                self.known[node] = self._leaf(graph, node, batch, selected)

    def _leaf(self, graph: Graph, node: Node, batch: Tensor, selected: set[str]) -> Traced:
        if node.name == graph.input:
            return Traced(batch, self.program.start(torch.ones_like(batch)))
        value, name = graph.constants.get(node.name), graph.params.get(node.name)
        if name is None or name not in selected or value is None:
            return Traced(value)
        if node not in self.carriers.reparametrised:
            energy = self.program.parameter(name, value)
            return Traced(value, energy if node in self.carriers.carrying else None)
        # A parameter seen through functions of its entries counts as one whatever they are: its leaf is 1, and each
        # use multiplies it by the square of what it makes of the entry.
        self.leaves[node] = self.program.parameter(name, torch.ones_like(value))
        direct = any(user in self.carriers.carrying and user not in self.carriers.bent for user in node.users)
        return Traced(value, self._made_of(node, value) if direct else None)

    def _made_of(self, leaf: Node, value: Tensor) -> Energy | None:
        energy = self.leaves.get(leaf)
        return None if energy is None else self.program.gate(energy, value.to(self.program.dtype).square())

    def call(self, node: Node, arguments: dict[str, Any]) -> Traced:
        """Run a node on values and on energies."""
        result = invoke(node.target, {name: value_of(argument) for name, argument in arguments.items()})
        traced = Traced(result, self._energy(node, arguments, result) if node in self.carriers.carrying else None)
        factor = self.watch.multipliers.get(node, 1.0)
        if factor == 1.0:
            return traced
        return Traced(traced.value * factor, self.program.gate(traced.energy, factor**2))

    def _energy(self, node: Node, arguments: dict[str, Any], result: Any) -> Any:
        carriers = self.carriers
        if node in carriers.bent:
            return self._made_of(carriers.bent[node], result)
        arguments |= {name: _frozen(arguments[name]) for name in carriers.frozen.get(node, ())}
        call = Call(node.target, arguments, self.program, self.gates, module_path(node), result)  # type: ignore[arg-type]
        if carriers.decouples(node):
            energies = [self.known[used].energy for used in carriers.sources(node)]
            self.program.decoupled += [e for e in energies if isinstance(e, Energy) and e.is_signal]
        if node in carriers.self_gated:
            found = carriers.self_gated[node]
            root, values = self.known[found.root], {used: self.known[used].value for used in found.reads()}
            if not isinstance(root.energy, Energy):
                return None
            return call.gated(root.energy, partial(slope, found.function(values)), root.value)
        leaves = pytree.tree_leaves(arguments)
        carried = any(isinstance(a, Traced) and a.energy is not None for a in leaves)
        if not carried or not _has_gradient(result):
            return None
        return (record(node.target).energy or linear_operator)(call)


def _frozen(argument: Any) -> Any:
    """Leave of an argument that is a gate its value, without its paths."""
    return Traced(argument.value) if isinstance(argument, Traced) else argument


def _has_gradient(result: Any) -> bool:
    """Tell whether gradients can pass: masks and indices carry no path."""
    tensors = (r for r in pytree.tree_leaves(result) if isinstance(r, Tensor))
    return any(r.dtype.is_floating_point or r.dtype.is_complex for r in tensors)


def _slots(traced: Traced) -> list[int]:
    energies = traced.energy if isinstance(traced.energy, tuple) else (traced.energy,)
    return [energy.slot for energy in energies if energy is not None]


def _name_layer(program: Program, node: Node, energy: Any) -> None:
    if isinstance(energy, Energy) and energy.is_signal:
        program.layers[module_path(node) or node.name] = energy.slot
