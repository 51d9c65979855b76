"""The network that total decoupling stands for, with its linear segments whole (docs/theory.md, section 4).

Every gate is frozen at its value on an example and given a random sign: f_s(h) is then affine in the inputs h, paths
that meet between the same two gates add coherently, and the mean square of f_s over signs is the path energy with
the energy of products, (W2 W1)^2, in the linear segments. Parameters that steer gates (queries, keys) are fixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from capalloc._energy.carriers import Activation, Carriers
from capalloc._energy.rules.norms import NORMS, normalise
from capalloc._graph.calls import bind
from capalloc._graph.capture import Graph
from capalloc._graph.interpret import Values, evaluate, fill, invoke
from capalloc._graph.operators import PRODUCTS
from capalloc._model.problem import random_signs


@dataclass(frozen=True)
class Decoupled:
    """A captured graph of one example as f_s(h; theta), the gates those of an example x."""

    graph: Graph
    carriers: Carriers

    def boundaries(self) -> list[Node]:
        """The gates: nodes where segments end and signs are drawn."""
        return [node for node in self.graph.calls() if node in self.carriers.carrying and self._is_gate(node)]

    def signs(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Random signs of every gate, (count, *shape of the gate)."""
        drawn = []
        for node in self.boundaries():
            value = _first(node.meta["val"])
            drawn.append(random_signs((count, *value.shape), torch.empty(0, dtype=value.dtype), generator))
        return drawn

    def __call__(self, params: Mapping[str, Tensor], h: Tensor, x: Tensor, signs: list[Tensor]) -> Tensor:
        """f_s(h): the amplitude of the outputs, with the parameters `params`."""
        values = evaluate(self.graph, x)
        amplitudes: Values = {}
        pending = iter(signs)
        for node in self.graph.nodes:
            if node not in self.carriers.carrying:
                continue
            if node.op == "placeholder":
                name = self.graph.params.get(node.name, "")
                amplitudes[node] = h if node.name == self.graph.input else params.get(name, values[node])
            elif node.op == "call_function":
                amplitudes[node] = self._amplitude(node, values, amplitudes, pending)
        out: Tensor = amplitudes[self.graph.output]
        return out

    def _is_gate(self, node: Node) -> bool:
        return node in self.carriers.signals and self.carriers.gates(node)

    def _amplitude(self, node: Node, values: Values, amplitudes: Values, signs: Iterator[Tensor]) -> Any:
        frozen = self.carriers.frozen.get(node, frozenset())
        arguments = bind(node.target, node.args, dict(node.kwargs))
        mixed = {
            name: fill(argument, values if name in frozen else values | amplitudes)
            for name, argument in arguments.items()
        }
        if self._is_gate(node):
            return self._gate(node, values, amplitudes, next(signs))
        if node.target in NORMS:
            return normalise(node.target, mixed, fill(arguments, values))
        sides = PRODUCTS.get(node.target, ())
        if sides and not frozen and all(arguments[side] in self.carriers.signals for side in sides):
            first, second = (mixed | {side: fill(arguments[side], values)} for side in sides)  # both carry in turn
            return invoke(node.target, first) + invoke(node.target, second)
        return invoke(node.target, mixed)

    def _gate(self, node: Node, values: Values, amplitudes: Values, sign: Tensor) -> Any:
        """The gate's derivative along the amplitude, with a random sign."""
        found = self.carriers.activations.get(node)
        if found is None:
            found = Activation(next(a for a in node.all_input_nodes if a in amplitudes), (node,))
        phi = found.function(values)
        _, slope, *_ = torch.func.jvp(lambda z: _first(phi(z)), (values[found.root],), (amplitudes[found.root],))
        through: Tensor = slope * sign
        return (through, None) if isinstance(values[node], tuple) else through


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) else value
