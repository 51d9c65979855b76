"""Gradients and gates at some points: their inner products, place by place and gate by gate.

Index convention: points (points, *inputs); inner products (points, points) in float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Node

from capalloc._decoupling.sites import by_example, operator_name
from capalloc._energy.residual import Trails
from capalloc._energy.rules import read_gates
from capalloc._graph.capture import module_path
from capalloc._graph.interpret import Values, evaluate, fill
from capalloc._model.problem import Problem, random_signs, seeded
from capalloc._operators.calls import Operation, arguments_of, slope
from capalloc._operators.records import record

#: Units whose products are taken together: what is made of them stays in a processor's cache.
UNITS_AT_ONCE = 2**14
Runs = Sequence[tuple[Values, int]]  # the values of each batch, and how many of its points count


@dataclass(frozen=True)
class Place:
    """A place where gradients are compared: the inputs, the sums of residual blocks, what enters a gate."""

    name: str
    kind: str
    node: Node


@dataclass(frozen=True)
class Observer:
    """A captured model with the places and the gates on its paths, inputs first."""

    trails: Trails
    axes: Mapping[Node, int]  # node -> the axis of the examples
    places: tuple[Place, ...]
    gates: tuple[Node, ...]

    @classmethod
    def of(cls, trails: Trails, axes: Mapping[Node, int]) -> Observer:
        on_path = [n for n in trails.order if trails.ancestors[trails.graph.output] >> trails.order[n] & 1]
        gates = tuple(node for node in on_path if _is_gate(trails, node) and _shaped_as(trails, node) in axes)
        streams = {block.sum: block.name for block in trails.blocks()}
        first = next(iter(trails.order))
        found = {first: Place("inputs", "inputs", first)}
        for node in on_path:
            if node in streams and node in axes:
                found[node] = Place(streams[node], "stream", node)
            elif node in gates and trails.carriers.decouples(node):
                entry = trails.before(node)[0]
                if entry in axes:
                    found.setdefault(entry, Place(_name(node), "gate", entry))
        names = numbered([place.name for place in found.values()])
        places = (replace(place, name=name) for place, name in zip(found.values(), names, strict=True))
        return cls(trails, axes, tuple(places), gates)

    @property
    def gate_names(self) -> list[str]:
        return numbered([_name(gate) for gate in self.gates])

    def entry(self, gate: Node) -> Node:
        """The signal that a gate acts on."""
        return self.trails.before(gate)[0]

    def __call__(
        self,
        points: Problem,
        weights: Mapping[Node, Tensor],
        num_probes: int,
        generator: torch.Generator,
        num_places: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Inner products of gradients, (places, points, points), and of gates, (gates, points, points).

        Args:
            points: the model's problem at any number of points.
            weights: path energy by unit of the gates that have one gate a unit: (units,).
            num_probes: random signs of the outputs that gradients are summed over, the same at all points.
            generator: draws them.
            num_places: how many of the places, the first ones; by default all.

        """
        runs: list[tuple[Values, int]] = []
        with torch.enable_grad():
            for k, (x, count) in enumerate(points.padded_batches(self.trails.graph.batch_size)):
                with seeded(k, x.device):
                    runs.append((evaluate(self.trails.graph, x.clone().requires_grad_()), count))
            gradients = self._gradients(runs, self.places[:num_places], num_probes, generator)
        with torch.no_grad():
            gates = [self._gates(node, runs, weights.get(node)) for node in self.gates]
        return gradients, torch.stack(gates) if gates else gradients[:0]

    def _gradients(self, runs: Runs, places: Sequence[Place], num_probes: int, generator: torch.Generator) -> Tensor:
        output = runs[0][0][self.trails.graph.output]
        nodes = [place.node for place in places]
        count = sum(n for _, n in runs)
        grams = torch.zeros(len(nodes), count, count, dtype=torch.float64)
        probes = 1 if output[0].numel() == 1 else num_probes
        for k in range(probes):
            signs = random_signs((1, *output.shape[1:]), output, generator)
            found = [self._pulled(values, signs, nodes, keep=k < probes - 1) for values, _ in runs]
            for row, node in enumerate(nodes):
                axis = self.axes.get(node, 0)
                grams[row] += _gram([self._rows(g[row], axis, n) for g, (_, n) in zip(found, runs, strict=True)])
        return grams

    def _pulled(self, values: Values, signs: Tensor, nodes: Sequence[Node], *, keep: bool) -> Sequence[Tensor]:
        """Gradients of the outputs, times signs, at some nodes."""
        scalar = (values[self.trails.graph.output] * signs).sum()
        at = [values[node] for node in nodes]
        return torch.autograd.grad(scalar, at, retain_graph=keep, allow_unused=True, materialize_grads=True)

    def _rows(self, value: Tensor, axis: int, count: int) -> Tensor:
        return by_example(value.detach(), axis, self.trails.graph.batch_size)[:count]

    def _gates(self, node: Node, runs: Runs, weights: Tensor | None) -> Tensor:
        axis = self.axes.get(_shaped_as(self.trails, node), 0)
        return _gram([self._rows(self._gate(node, values), axis, n) for values, n in runs], weights)

    def _gate(self, node: Node, values: Values) -> Tensor:
        """Read the gates of a call at every point."""
        self_gated = self.trails.carriers.self_gated.get(node)
        if self_gated is not None:
            return slope(self_gated.function(values), values[self_gated.root])
        if record(node.target).gates is not None:
            return read_gates(Operation(node.target, fill(arguments_of(node), values), values[node]))
        factor: Tensor = values[_shaped_as(self.trails, node)]
        return factor


def _gram(rows: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
    """Inner products of all rows, with a weight for each unit where there is one."""
    whole = torch.cat(list(rows)) if len(rows) > 1 else rows[0]
    if weights is not None and len(weights) != whole.shape[1]:
        weights = None
    products = torch.zeros(len(whole), len(whole), dtype=torch.float64, device=whole.device)
    for start in range(0, whole.shape[1], UNITS_AT_ONCE):
        here = slice(start, start + UNITS_AT_ONCE)
        wide = whole[:, here].double()
        products.addmm_(wide if weights is None else wide * weights[here], wide.T)
    return products.cpu()


def _is_gate(trails: Trails, node: Node) -> bool:
    """Tell whether a call has gates that can be read and that examples may differ in."""
    known = record(node.target)
    if known.gates is not None:
        return known.kind != "normalisation" or not known.steady(arguments_of(node))
    return node in trails.carriers.self_gated or _shaped_as(trails, node) is not node


def _shaped_as(trails: Trails, node: Node) -> Node:
    """Find the node that gates have the shape of: the factor of a product that is a gate, or the call itself."""
    known = record(node.target)
    if known.gates is not None or known.decouples:
        return node
    given = arguments_of(node)
    names = trails.carriers.frozen.get(node, frozenset())
    factors = [given[name] for name in names if given[name] in trails.carriers.signals]
    return factors[0] if factors else node


def _name(gate: Node) -> str:
    path = module_path(gate)
    return f"{path} ({operator_name(gate)})" if path else gate.name


def numbered(names: Sequence[str]) -> list[str]:
    """Count names that occur more than once."""
    several = Counter(names)
    counts = [names[:k].count(name) + 1 for k, name in enumerate(names)]
    return [f"{name}:{k}" if several[name] > 1 else name for name, k in zip(names, counts, strict=True)]
