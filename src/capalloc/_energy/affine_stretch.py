"""The part of a graph that is still affine in the inputs: no gate yet (docs/theory.md, section 2, "The metric").

There all paths that start at the constant meet without a gate between them. They are one path, whose energy at a node
is the square of the node's value at x = mu, the data's mean; and the constant starts where the first free parameter
acts, so that a fixed normalisation before it changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from capalloc._energy.carriers import Carriers
from capalloc._energy.rules import Traced
from capalloc._graph.capture import Graph
from capalloc._graph.interpret import Values, fill, placeholders
from capalloc._graph.structure import nodes_in
from capalloc._model.input_metric import InputMetric
from capalloc._operators.calls import arguments_of, invoke
from capalloc._operators.records import record

#: Kinds that are affine in their arguments together, whatever these are.
AFFINE_KINDS = frozenset({"sum", "average", "copy", "movement", "piece"})


@dataclass(frozen=True)
class AffineStretch:
    """Nodes that are affine in the inputs, with their values at x = mu, and the parameters that start paths there."""

    graph: Graph
    metric: InputMetric
    values: Mapping[Node, Any]
    biases: frozenset[Node]
    found: dict[Node, Tensor] = field(default_factory=dict)  # what `columns` found

    @classmethod
    def of(cls, graph: Graph, carriers: Carriers, metric: InputMetric, center: Tensor) -> AffineStretch:
        """Run the graph at the center as far as it is affine."""
        depends: set[Node] = {node for node in graph.nodes if node.name == graph.input}
        affine = set(depends)
        known: Values = placeholders(graph, center.expand(graph.batch_size, *center.shape))
        for node in graph.calls():
            moving = [used for used in node.all_input_nodes if used in depends]
            if moving:
                depends.add(node)
                if any(used not in affine for used in moving) or not _is_affine(node, carriers, known):
                    continue
                affine.add(node)
            with torch.no_grad():
                known[node] = invoke(node.target, fill(arguments_of(node), known))
        biases = {node for node in graph.nodes if node.name in graph.params and _only_starts(node, affine)}
        values = {node: known[node] for node in affine}
        return cls(graph, metric, values, frozenset(biases & carriers.carrying))

    @property
    def mixes(self) -> bool:
        """Tell whether inputs are correlated."""
        return self.metric.root is not None and self.metric.root.ndim == 2

    def columns(self, node: Node) -> Tensor:
        """Find what each z_i adds to a node's value, (inputs, *shape of one example's)."""
        if node not in self.found:
            at_mean = self.values[node]
            directions = self.metric.columns(0, self.metric.num_inputs)
            parts = [self._moved(node, part) - at_mean for part in directions.split(self.graph.batch_size)]
            per_example = at_mean.numel() // self.graph.batch_size
            self.found[node] = torch.cat([part.reshape(-1, per_example) for part in parts])[: len(directions)]
        return self.found[node]

    def _moved(self, node: Node, directions: Tensor) -> Tensor:
        """The node's value at mu + directions; a batch that is not full is filled up with zeros."""
        missing = directions.new_zeros(self.graph.batch_size - len(directions), *directions.shape[1:])
        assert self.metric.center is not None
        known = placeholders(self.graph, self.metric.center + torch.cat([directions, missing]))
        with torch.no_grad():
            for call in self.graph.calls():
                if node in known:
                    break
                if all(used in known for used in call.all_input_nodes):
                    known[call] = invoke(call.target, fill(arguments_of(call), known))
        moved: Tensor = known[node]
        return moved


@dataclass(frozen=True)
class InputStart:
    """The energies that one example's inputs start with, and how the constant starts; None is path by path."""

    energies: Tensor
    stretch: AffineStretch | None = None

    @classmethod
    def of(cls, graph: Graph, carriers: Carriers, metric: InputMetric) -> InputStart:
        """Start in a metric: z of unit energy, x = mu + A z."""
        center = metric.center
        return cls(metric.variances, None if center is None else AffineStretch.of(graph, carriers, metric, center))


@dataclass(frozen=True)
class Parts(Traced):
    """A value of the stretch: beside its whole energy that of paths from the inputs, and from the constant."""

    inputs: Any = None
    constant: Any = None  # None where no free parameter acted yet


def _is_affine(node: Node, carriers: Carriers, known: Values) -> bool:
    """Tell whether a call on affine arguments is affine in them together."""
    if node not in carriers.carrying or node in carriers.self_gated or node in carriers.frozen:
        return False
    operator, given = record(node.target), arguments_of(node)
    if operator.factors is not None:
        left, right = (any(n in carriers.signals for n in nodes_in(given[name])) for name in operator.factors)
        return not right if operator.kind == "quotient" else not (left and right)
    if operator.kind == "normalisation":
        return operator.steady(fill(given, known))
    if operator.kind in ("dense", "convolution"):
        return not any(n in carriers.signals for n in nodes_in(given.get("weight")))
    linear = operator.kind == "other" and operator.energy is None  # the rule of linear operators refuses all else
    return linear or operator.kind in AFFINE_KINDS


def _only_starts(parameter: Node, affine: set[Node]) -> bool:
    """Tell whether every use of a parameter adds it to something affine in the inputs."""
    for user in parameter.users:
        operator, given = record(user.target), arguments_of(user)
        if user in affine:
            weights = [given.get(name) for name in (*(operator.factors or ()), "weight")]
            if any(parameter in nodes_in(weight) for weight in weights):
                return False
        elif not operator.moves or not _only_starts(user, affine):
            return False
    return bool(parameter.users)
