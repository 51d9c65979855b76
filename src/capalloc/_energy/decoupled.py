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

from capalloc._energy.carriers import Carriers, SelfGated
from capalloc._energy.rules.normalisations import normalise
from capalloc._graph.capture import Graph
from capalloc._graph.interpret import Values, evaluate, fill
from capalloc._model.problem import random_signs
from capalloc._operators.calls import arguments_of, invoke
from capalloc._operators.records import record


@dataclass(frozen=True)
class Decoupled:
    """A captured graph of one example as f_s(h; theta), the gates those of an example x."""

    graph: Graph
    carriers: Carriers

    def boundaries(self) -> list[Node]:
        """List the gates: nodes where segments end and signs are drawn."""
        return [node for node in self.graph.calls() if self.carriers.decouples(node)]

    def signs(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Draw random signs of every gate, (count, *shape of the gate)."""
        values = [_first(node.meta["val"]) for node in self.boundaries()]
        return [random_signs((count, *v.shape), torch.empty(0, dtype=v.dtype), generator) for v in values]

    def __call__(self, params: Mapping[str, Tensor], h: Tensor, x: Tensor, signs: list[Tensor]) -> Tensor:
        """f_s(h): the amplitude of the outputs, with the parameters `params`."""
        values = evaluate(self.graph, x)
        amplitudes: Values = {}
        pending = iter(signs)
        for node in self.graph.nodes:
            if node in self.carriers.carrying and node.op == "placeholder":
                name = self.graph.params.get(node.name, "")
                amplitudes[node] = h if node.name == self.graph.input else params.get(name, values[node])
            elif node in self.carriers.carrying:
                amplitudes[node] = self._amplitude(node, values, amplitudes, pending)
        out: Tensor = amplitudes[self.graph.output]
        return out

    def _amplitude(self, node: Node, values: Values, amplitudes: Values, signs: Iterator[Tensor]) -> Any:
        if self.carriers.decouples(node):
            return self._gate(node, values, amplitudes, next(signs))
        frozen = self.carriers.frozen.get(node, frozenset())
        arguments, known = arguments_of(node), record(node.target)
        at, moving = fill(arguments, values), fill(arguments, values | amplitudes)
        mixed = {name: at[name] if name in frozen else moving[name] for name in arguments}
        if known.kind == "normalisation" and not known.steady(at):
            return normalise(node.target, mixed, at)
        sides = known.factors or ()
        if sides and not frozen and all(arguments[side] in self.carriers.signals for side in sides):
            first, second = (mixed | {side: at[side]} for side in sides)  # both carry in turn
            return invoke(node.target, first) + invoke(node.target, second)
        return invoke(node.target, mixed)

    def _gate(self, node: Node, values: Values, amplitudes: Values, sign: Tensor) -> Any:
        """Give the gate's derivative along the amplitude, with a random sign."""
        root = next(a for a in node.all_input_nodes if a in amplitudes)
        found = self.carriers.self_gated.get(node) or SelfGated(root, (node,))
        phi = found.function(values)
        _, slope, *_ = torch.func.jvp(lambda z: _first(phi(z)), (values[found.root],), (amplitudes[found.root],))
        through: Tensor = slope * sign
        return (through, None) if isinstance(values[node], tuple) else through


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) else value
