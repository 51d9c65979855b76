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
from torch.nn.attention import SDPBackend, sdpa_kernel

from capalloc._decoupling.activations import slope
from capalloc._decoupling.readers import Operation, reader_of
from capalloc._decoupling.sites import by_example
from capalloc._energy.carriers import Activation
from capalloc._energy.rates import BATCH_NORM
from capalloc._energy.residual import Trails
from capalloc._energy.rules import DECOUPLING
from capalloc._graph.capture import module_path
from capalloc._graph.interpret import Values, evaluate, fill
from capalloc._graph.structure import arguments
from capalloc._model.problem import Problem, random_signs, seeded

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
        """Find places and gates."""
        on_path = [n for n in trails.order if trails.ancestors[trails.graph.output] >> trails.order[n] & 1]
        gates = tuple(
            node
            for node in on_path
            if _is_gate(trails, node) and node.target is not BATCH_NORM and _has_examples(trails, node, axes)
        )
        streams = {block.sum: block.name for block in trails.blocks()}
        first = next(iter(trails.order))
        found = {first: Place("inputs", "inputs", first)}
        for node in on_path:
            if node in streams and node in axes:
                found[node] = Place(streams[node], "stream", node)
            elif node in gates and trails.is_gate(node):
                entry = trails.before(node)[0]
                if entry in axes:
                    found.setdefault(entry, Place(_name(node), "gate", entry))
        names = numbered([place.name for place in found.values()])
        places = (replace(place, name=name) for place, name in zip(found.values(), names, strict=True))
        return cls(trails, axes, tuple(places), gates)

    @property
    def gate_names(self) -> list[str]:
        """The gates for people."""
        return numbered([_name(gate) for gate in self.gates])

    def entry(self, gate: Node) -> Node:
        """The signal that a gate acts on."""
        return self.trails.before(gate)[0]

    def __call__(
        self, points: Problem, weights: Mapping[Node, Tensor], num_probes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Inner products of gradients, (places, points, points), and of gates, (gates, points, points).

        Args:
            points: the model's problem at any number of points.
            weights: path energy by unit of the gates that have one gate a unit: (units,).
            num_probes: random signs of the outputs that gradients are summed over, the same at all points.
            generator: draws them.

        """
        runs: list[tuple[Values, int]] = []
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for k, (x, count) in enumerate(points.padded_batches(self.trails.graph.batch_size)):
                with seeded(k, x.device):
                    runs.append((evaluate(self.trails.graph, x.clone().requires_grad_()), count))
            gradients = self._gradients(runs, num_probes, generator)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            gates = [
                _gram(
                    [self._rows(self._gate(node, values), self._axis(node), n) for values, n in runs], weights.get(node)
                )
                for node in self.gates
            ]
        return gradients, torch.stack(gates) if gates else gradients[:0]

    def _gradients(self, runs: Runs, num_probes: int, generator: torch.Generator) -> Tensor:
        output = runs[0][0][self.trails.graph.output]
        nodes = [place.node for place in self.places]
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
        return by_example(value.detach(), axis, self.trails.graph.batch_size)[:count].to(torch.float64)

    def _axis(self, node: Node) -> int:
        frozen = _frozen(self.trails, node)
        return self.axes.get(frozen if frozen is not None else node, 0)

    def _gate(self, node: Node, values: Values) -> Tensor:
        """The gates of a call at every point."""
        activation: Activation | None = self.trails.carriers.activations.get(node)
        if activation is not None:
            return slope(activation.function(values), values[activation.root])
        read = reader_of(node.target)
        if read is not None:
            return read.gates(Operation(node.target, fill(arguments(node), values), values[node]))
        frozen = _frozen(self.trails, node)
        assert frozen is not None
        gate: Tensor = values[frozen]
        return gate


def _gram(rows: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
    """Inner products of all rows, with a weight for each unit where there is one."""
    whole = torch.cat(list(rows))
    weighted = whole * weights if weights is not None and len(weights) == whole.shape[1] else whole
    return (weighted @ whole.T).cpu()


def _is_gate(trails: Trails, node: Node) -> bool:
    if trails.is_gate(node):
        return node in trails.carriers.activations or reader_of(node.target) is not None
    return reader_of(node.target) is not None or _frozen(trails, node) is not None


def _frozen(trails: Trails, node: Node) -> Node | None:
    """The factor of a product that is a gate of the examples' own."""
    if node.target in DECOUPLING or reader_of(node.target) is not None:
        return None
    given = arguments(node)
    names = trails.carriers.frozen.get(node, frozenset())
    return next((given[name] for name in names if given[name] in trails.carriers.signals), None)


def _has_examples(trails: Trails, node: Node, axes: Mapping[Node, int]) -> bool:
    frozen = _frozen(trails, node)
    return (node if frozen is None else frozen) in axes


def _name(gate: Node) -> str:
    operator, path = str(gate.target).removeprefix("aten.").split(".")[0].strip("_"), module_path(gate)
    return f"{path} ({operator})" if path else gate.name


def numbered(names: Sequence[str]) -> list[str]:
    """Names that occur more than once, counted."""
    several = Counter(names)
    counts = [names[:k].count(name) + 1 for k, name in enumerate(names)]
    return [f"{name}:{k}" if several[name] > 1 else name for name, k in zip(names, counts, strict=True)]
