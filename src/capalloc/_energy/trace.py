"""Walk the captured graph with (value, energy) pairs: graph + examples -> program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from capalloc._energy.affine_stretch import AffineStretch, InputStart, Parts
from capalloc._energy.carriers import NO_PATH, Carriers, find, used_as_it_is
from capalloc._energy.gate_sources import GateSource
from capalloc._energy.made_ranks import (
    MadeWeight,
    Making,
    OneWay,
    tie_what_cannot_be_rescaled,
    tie_what_moves_apart,
)
from capalloc._energy.made_weights import JACOBIAN_LIMIT, jacobians, off_zero, possible, shares
from capalloc._energy.maps import Shared
from capalloc._energy.mixed_inputs import mixed, whole
from capalloc._energy.program import Energy, Program
from capalloc._energy.rules import Call, Traced, value_of
from capalloc._energy.rules.linearised import linearised, without_rule
from capalloc._energy.symmetries.labels import DEFAULT_LIMITS, GROUND, Channels, Limits
from capalloc._energy.symmetries.sharing import relate_uses
from capalloc._graph.capture import Graph, module_path
from capalloc._graph.interpret import interpret
from capalloc._operators.calls import invoke, leaves, mapped, scales, slope
from capalloc._operators.records import record


@dataclass(frozen=True)
class Watch:
    """Nodes that a trace notes and values that it changes, beside the plain walk."""

    nodes: frozenset[Node] = frozenset()  # nodes whose slots are noted in `Program.nodes`
    multipliers: Mapping[Node, float] = field(default_factory=dict)  # of the values of some nodes
    opened: Mapping[Node, Mapping[str, Tensor]] = field(default_factory=dict)  # gates in the place of the examples'


NOTHING_WATCHED = Watch()


def trace(
    graph: Graph,
    batch: Tensor,
    gates: GateSource,
    selected: set[str],
    dtype: torch.dtype = torch.float64,
    *,
    layers: bool = True,
    weights: bool = True,
    carriers: Carriers | None = None,
    watch: Watch = NOTHING_WATCHED,
    start: InputStart | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Program:
    """Trace the energy network of a batch.

    Args:
        graph: the captured model.
        batch: as many examples as it was captured for.
        gates: where squared slopes come from.
        selected: names of the free parameters.
        dtype: of the energies.
        layers: keep every layer's energies.
        weights: keep the energies that tell what weights carry.
        carriers: what carries path energy, if it has been found before.
        watch: nodes to note or to change.
        start: how paths start; by default with energy 1 at every input, and at the constant one by one.
        limits: of what counting symmetries may hold.

    """
    carriers = carriers or find(graph)
    program = Program(dtype, found=graph.found, channels=Channels(limits), weights=weights)
    tracing = _Tracing(program, gates, carriers, watch, start or InputStart(torch.ones_like(batch[0])))
    tracing.start(graph, batch, selected)
    known = tracing.known
    users: Counter[int] = Counter()  # nodes to come that hold an energy
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        made = len(program.values)
        for node, done in interpret(graph, known, tracing.call, carriers.reads):
            slots = _slots(known[node])
            _name_layer(program, node, known[node])
            if layers:
                program.needed.update(slot for layer in program.layers.values() for slot in layer)
            if node in watch.nodes and slots:
                program.nodes[node.name] = slots[0]
            users.update(slots)
            program.release({*range(made, len(program.values))} - set(slots))
            users.subtract(slot for traced in done for slot in _slots(traced))
            program.release(slot for traced in done for slot in _slots(traced) if users[slot] <= 0)
            made = len(program.values)
    energy = known[graph.output].energy
    if not isinstance(energy, Energy) or not energy.is_signal:
        raise ValueError(NO_PATH)
    if torch.isnan(known[graph.output].value).any():
        raise ValueError("the model's outputs hold NaN; drop or repair the examples that give them")
    program.output = energy.slot
    assert energy.labels is not None
    program.channels.tie(energy.labels, torch.tensor(GROUND))
    tracing.settle_made_weights()
    relate_uses(program)
    return program


@dataclass(frozen=True)
class _Tracing:
    """A program in the making."""

    program: Program
    gates: GateSource
    carriers: Carriers
    watch: Watch
    inputs: InputStart
    known: dict[Node, Traced] = field(default_factory=dict)
    leaves: dict[Node, Energy] = field(default_factory=dict)  # of parameters seen through functions of their entries
    direct: set[Node] = field(default_factory=set)  # those that paths use as they are too
    made: list[MadeWeight] = field(default_factory=list)  # weights whose Jacobians are known
    several: dict[Node, list[OneWay]] = field(default_factory=dict)  # what parameters are seen through, where not alike

    def start(self, graph: Graph, batch: Tensor, selected: set[str]) -> None:
        for node in graph.nodes:
            if node.op == "placeholder":
                self.known[node] = self._leaf(graph, node, batch, selected)

    def _leaf(self, graph: Graph, node: Node, batch: Tensor, selected: set[str]) -> Traced:
        if node.name == graph.input:
            energy = self.program.start(self.inputs.energies.to(batch).expand_as(batch).contiguous())
            stretch = self.inputs.stretch
            return self._parts(stretch, node, batch, energy, None) if stretch else Traced(batch, energy)
        value, name = graph.constants.get(node.name), graph.params.get(node.name)
        if name is None or name not in selected or value is None:
            return Traced(value)
        if self.inputs.stretch and node in self.inputs.stretch.biases:
            # It stands for the stretch's value at x = mu, which need not be 0 where the parameter is.
            return Traced(value, self.program.parameter(name, torch.where(value == 0, 1.0, value)))
        if node not in self.carriers.reparametrised:
            energy = self.program.parameter(name, value)
            return Traced(value, energy if node in self.carriers.carrying and value.numel() else None)
        # A parameter seen through functions of its entries counts as one whatever they are: its leaf is 1, and each
        # use multiplies it by the square of what it makes of the entry.
        self.leaves[node] = self.program.parameter(name, torch.ones_like(value))
        made = {call for stretch in self.carriers.made.values() for call in stretch.calls} | {*self.carriers.bent}
        if any(user in self.carriers.carrying and user not in made for user in node.users):
            self.direct.add(node)
        seen = self._made_of(node, value) if node in self.direct else None
        if seen is not None and used_as_it_is(node, self.carriers.several.values()):
            self._see_way(node, seen, value, torch.ones_like(value))
        return Traced(value, seen)

    def _made_of(self, leaf: Node, value: Tensor, moved: Tensor | bool = True) -> Energy | None:
        energy = self.leaves.get(leaf)
        if energy is None:
            return None
        return self._zeroed(self.program.gate(energy, off_zero(value, moved).double().square()), value)

    def _zeroed(self, made: Energy, weight: Tensor) -> Energy:
        """Let no path through the entries of a weight that are 0; their parameters' own derivatives stay."""
        if bool((weight == 0).any()):
            self.program.values[made.slot] = torch.where(weight == 0, 0.0, self.program.values[made.slot])
        return made

    def _bent(self, node: Node, result: Tensor) -> Energy | None:
        leaf, several = self.carriers.bent[node], node in self.carriers.several
        if leaf not in self.leaves:
            return None
        rate = self._rate(node, leaf) if several or bool((result == 0).any()) else None
        made = self._made_of(leaf, result, True if rate is None else rate != 0)
        if made is not None and several and rate is not None:
            self._see_way(leaf, made, result, rate)
        return made

    def _rate(self, node: Node, leaf: Node) -> Tensor:
        """Give the slope of a function of a parameter's entries."""
        stretch = self.carriers.stretches[node]
        known = {used: self.known[used].value for used in stretch.reads()}
        return slope(stretch.function(known), self.known[leaf].value)

    def _see_way(self, leaf: Node, made: Energy, value: Tensor, rate: Tensor) -> None:
        self.several.setdefault(leaf, []).append(OneWay(made.slot, value, rate))
        self.program.powers[made.slot] = torch.where(value == 0, 0.0, rate / value).to(self.program.dtype)

    def _shared(self, node: Node, weight: Tensor) -> Energy | None:
        """Share the squares of a weight among the free parameters that make it."""
        program, stretch = self.program, self.carriers.made[node]
        free = [root for root in stretch.roots if root in self.leaves]
        if not free:
            return None
        key = (node, *free)
        if key not in program.found:
            known = {used: self.known[used].value for used in stretch.reads()}
            program.found[key] = jacobians(stretch, known, free, weight), possible(stretch, known, free, weight)
        found, can_be = program.found[key]
        rest = program.squares(torch.ones_like(weight))  # of entries that no free parameter moves
        parts = shares(found)
        moved = (parts[-1] == 0).reshape(weight.shape).to(weight.device)
        through = Shared(off_zero(weight.to(program.dtype), moved).square(), parts, can_be)
        made = self._zeroed(program.step(through, [*(self.leaves[root] for root in free), rest], None), weight)
        if all(part.shape[1] == self.known[root].value.numel() for root, part in found.items()):
            self.made.append(MadeWeight(made.slot, weight, found))
        else:
            program.channels.exact = False
        return made

    def settle_made_weights(self) -> None:
        """Say what the parameters that make weights cannot rescale."""
        program = self.program
        program.channels.exact &= not self.carriers.loose
        for ways in self.several.values():
            tie_what_moves_apart(program, ways)
        if not self.made:
            return
        bent = {leaf for node, leaf in self.carriers.bent.items() if node in self.carriers.carrying}
        slots = {root: leaf.slot for root, leaf in self.leaves.items()}
        program.making = partial(Making(self.made, self.direct | bent, slots).held, program, limit=JACOBIAN_LIMIT)
        tie_what_cannot_be_rescaled(program, self.made, JACOBIAN_LIMIT)

    def call(self, node: Node, arguments: dict[str, Any]) -> Traced:
        """Run a node on values and on energies."""
        result = invoke(node.target, {name: value_of(argument) for name, argument in arguments.items()})
        stretch = self.inputs.stretch
        if stretch and node in stretch.values:
            return self._affine(stretch, node, arguments, result)
        traced = Traced(result, self._energy(node, arguments, result) if node in self.carriers.carrying else None)
        factor = self.watch.multipliers.get(node, 1.0)
        if factor == 1.0:
            return traced
        return Traced(traced.value * factor, self.program.gate(traced.energy, factor**2))

    def _affine(self, stretch: AffineStretch, node: Node, arguments: dict[str, Any], result: Any) -> Traced:
        """Trace a node of the affine stretch twice: the inputs' paths, then the constant's."""
        program, edges = self.program, len(self.program.edges)
        read = [part for part in leaves(arguments) if isinstance(part, Parts)]
        started = any(part.constant is not None for part in read)
        program.side, program.begun = "inputs", False
        if stretch.mixes and not started:
            program.mix = lambda fn, signal, weight: mixed(program, stretch.columns(node), fn, signal, weight)
        inputs = self._energy(node, _on_side(arguments, lambda p: p.inputs), result)
        free = len(program.edges) > edges or program.begun
        if stretch.mixes and not started and len(program.edges) > edges + 1:
            raise ValueError(
                f"a metric with covariances takes no first layer of several maps, as {module_path(node)!r} has: "
                "use metric='variance'"
            )
        program.side, program.mix, constant = "constant", None, None
        started |= program.begun
        if started:
            constant = self._energy(node, _on_side(arguments, partial(_constant_of, program)), result)
        program.side = "both"
        if inputs is not None and (started or free):
            constant = _zip(program.coherent, inputs, constant, stretch.values[node])
        return self._parts(stretch, node, result, inputs, constant)

    def _parts(self, stretch: AffineStretch, node: Node, value: Any, inputs: Any, constant: Any) -> Traced:
        """Put both sides together for what is no more of the stretch."""
        if inputs is None:
            return Traced(value)
        joined = inputs
        if any(user not in stretch.values for user in node.users):
            if stretch.mixes and constant is None and isinstance(inputs, Energy):
                alone, start = whole(self.program, stretch.columns(node), inputs)
                joined = self.program.step(alone, [start], inputs.labels)
            joined = _zip(self.program.whole, joined, constant, stretch.values[node])
        return Parts(value, joined, inputs, constant)

    def _energy(self, node: Node, arguments: dict[str, Any], result: Any) -> Any:
        carriers = self.carriers
        if not _has_gradient(result):
            return None
        if node in carriers.bent:
            return self._bent(node, result)
        if node in carriers.made:
            return self._shared(node, result)
        if node in carriers.linear:
            derived = carriers.linear[node]
            given = {used.name: self.known[used] for used in derived.given}
            given |= {used.name: _frozen(self.known[used]) for used in derived.given if used not in carriers.signals}
            call = Call(derived, given, self.program, self.gates, module_path(node), result)
            if all(traced.energy is None for traced in given.values()):
                return None
            if not carriers.decouples(node):
                return self._without_rule(node, call)
            self._see_gate(node, call)  # |z| is no linear end
            return linearised(call)
        arguments |= {name: _frozen(arguments[name]) for name in carriers.frozen.get(node, ())}
        arguments |= {name: Traced(gate) for name, gate in self.watch.opened.get(node, {}).items()}
        call = Call(node.target, arguments, self.program, self.gates, module_path(node), result)  # type: ignore[arg-type]
        if carriers.decouples(node):
            self._see_gate(node, call)
        if node in carriers.self_gated:
            root = self.known[carriers.self_gated[node].root]
            if not isinstance(root.energy, Energy):
                return None
            return call.gated(root.energy, partial(slope, self._function(node)), root.value)
        if not any(isinstance(a, Traced) and a.energy is not None for a in leaves(arguments)):
            return None
        own = record(node.target).energy
        return self._without_rule(node, call) if own is None else own(replace(call, args=mapped(_dense, call.args)))

    def _without_rule(self, node: Node, call: Call) -> Any:
        affine = self.inputs.stretch is not None and node in self.inputs.stretch.values
        energy, is_curved = without_rule(call, may_curve=not affine and getattr(node.target, "namespace", "") == "aten")
        if is_curved:
            self._see_gate(node, call)
        return energy

    def _function(self, node: Node) -> Callable[[Tensor], Any]:
        """Give a product of functions of one signal as a function of it."""
        found = self.carriers.self_gated[node]
        return found.function({used: self.known[used].value for used in found.reads()})

    def _see_gate(self, node: Node, call: Call) -> None:
        """Note what a gate keeps apart, and what it does not let rescale."""
        energies = (self.known[used].energy for used in self.carriers.sources(node))
        signals = [e for e in energies if isinstance(e, Energy) and e.is_signal]
        self.program.decoupled += signals
        self.program.pooled += signals if record(node.target).kind == "pooling" else []
        self.program.bent = self.program.bent or not self._lets_rescale(node, call)

    def _lets_rescale(self, node: Node, call: Call) -> bool:
        """Tell whether an activation is positively homogeneous, on the examples at least."""
        known, derived = record(node.target), self.carriers.derived(node)
        if self.gates != "data" or (derived is None and (known.homogeneous or known.kind != "activation")):
            return known.homogeneous and derived is None
        if node in self.carriers.self_gated:
            function = self._function(node)
            return scales(function, partial(slope, function), self.known[self.carriers.self_gated[node].root].value)
        return derived is None and scales(call.operation.at, call.operation.slope, call.operation.signal)


def _frozen(argument: Any) -> Any:
    """Leave of an argument that is a gate its value, without its paths."""
    return Traced(argument.value) if isinstance(argument, Traced) else argument


def _dense(argument: Any) -> Any:
    """Give a sparse constant in full, as rules read it."""
    if (
        isinstance(argument, Traced)
        and isinstance(argument.value, Tensor)
        and argument.value.layout is not torch.strided
    ):
        return Traced(argument.value.to_dense())
    return argument


def _has_gradient(result: Any) -> bool:
    """Tell whether gradients can pass: masks, indices and what has no entries carry no path."""
    tensors = (r for r in leaves(result) if isinstance(r, Tensor) and r.numel())
    return any(r.dtype.is_floating_point or r.dtype.is_complex for r in tensors)


def _slots(traced: Traced) -> list[int]:
    sides = [traced.energy, *((traced.inputs, traced.constant) if isinstance(traced, Parts) else ())]
    energies = [energy for side in sides for energy in (side if isinstance(side, tuple) else (side,))]
    return list(dict.fromkeys(energy.slot for energy in energies if energy is not None))


def _name_layer(program: Program, node: Node, traced: Traced) -> None:
    if isinstance(traced.energy, Energy) and traced.energy.is_signal:
        sides = [traced.inputs, traced.constant] if isinstance(traced, Parts) else [traced.energy]
        program.layers[module_path(node) or node.name] = tuple(side.slot for side in sides if side is not None)


def _on_side(arguments: dict[str, Any], side: Callable[[Parts], Any]) -> dict[str, Any]:
    """Leave of what belongs to the affine stretch the energy of one side."""
    chosen = lambda a: Traced(a.value, side(a)) if isinstance(a, Parts) else a  # noqa: E731
    return mapped(chosen, arguments)  # type: ignore[no-any-return]


def _constant_of(program: Program, parts: Parts) -> Any:
    """The constant's paths, or none where they have not started."""
    if parts.constant is not None:
        return parts.constant
    return _zip(lambda energy: program.none(energy.shape), parts.inputs)


def _zip(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Apply a function to one energy after the other of an operator with several results."""
    if not isinstance(first, tuple):
        return None if first is None else function(first, *others)
    rest = [other if isinstance(other, (tuple, list)) else [other] * len(first) for other in others]
    return tuple(_zip(function, *each) for each in zip(first, *rest, strict=True))
