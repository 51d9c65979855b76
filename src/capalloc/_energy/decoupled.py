"""The network that total decoupling stands for, with its linear segments whole (docs/theory.md, section 4).

Every gate is frozen at its value on an example and given a random sign: f_s(h) is then affine in the inputs h, paths
that meet between the same two gates add coherently, and the mean square of f_s over signs is the path energy with
the energy of products, (W2 W1)^2, in the linear segments. Parameters that steer gates (queries, keys) are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from capalloc._energy.carriers import Carriers, Derived
from capalloc._energy.rules import UnsupportedOperatorError
from capalloc._energy.rules.normalisations import normalise
from capalloc._graph.capture import Graph
from capalloc._graph.interpret import Values, evaluate, fill
from capalloc._model.problem import random_signs
from capalloc._operators.calls import Operation, arguments_of, invoke, slope
from capalloc._operators.records import record


@dataclass(frozen=True)
class Decoupled:
    """A captured graph of one example, with random signs at its gates."""

    graph: Graph
    carriers: Carriers

    def boundaries(self) -> list[Node]:
        """List the gates: nodes where segments end and signs are drawn."""
        return [node for node in self.graph.calls() if self.carriers.decouples(node)]

    def signs(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Draw random signs of every gate, (count, *shape of the gate)."""
        values = [_first(node.meta["val"]) for node in self.boundaries()]
        return [random_signs((count, *v.shape), torch.empty(0, dtype=v.dtype), generator) for v in values]

    def at(self, x: Tensor) -> AtExample:
        """Freeze the gates at an example."""
        values = evaluate(self.graph, x)
        slopes: dict[Node, Tensor] = {}
        for node in self.boundaries():
            if node in self.carriers.self_gated:
                found = self.carriers.self_gated[node]
                slopes[node] = slope(found.function(values), values[found.root])
            elif record(node.target).kind == "activation" and node not in self.carriers.linear:
                operation = Operation(node.target, fill(arguments_of(node), values), values[node])
                slopes[node] = operation.slope(operation.signal)
            elif getattr(node.target, "namespace", "aten") != "aten":  # their derivatives would come out as 0
                raise UnsupportedOperatorError(
                    f"linear segments need the derivative of {node.target} along a direction, which operators of "
                    "torch.library lack; give its slope if it acts entry by entry, or use another solver"
                )
        return AtExample(self, values, slopes)


@dataclass(frozen=True)
class AtExample:
    """f_s(h; theta) with the gates of an example."""

    network: Decoupled
    values: Values
    slopes: dict[Node, Tensor]  # of activations

    def __call__(self, params: Mapping[str, Tensor], h: Tensor, signs: list[Tensor]) -> Tensor:
        """f_s(h): the amplitude of the outputs, with the parameters `params`."""
        graph, carriers = self.network.graph, self.network.carriers
        amplitudes: Values = {}
        pending = iter(signs)
        for node in graph.nodes:
            if node in carriers.carrying and node.op == "placeholder":
                name = graph.params.get(node.name, "")
                amplitudes[node] = h if node.name == graph.input else params.get(name, self.values[node])
            elif carriers.decouples(node):
                amplitudes[node] = self._gate(node, amplitudes, next(pending))
            elif node in carriers.carrying and node.op == "call_function":
                amplitudes[node] = self._amplitude(node, amplitudes)
        out: Tensor = amplitudes[graph.output]
        return out

    def _amplitude(self, node: Node, amplitudes: Values) -> Any:
        carriers = self.network.carriers
        if (derived := carriers.derived(node)) is not None:
            return derived.function(self.values)(*(amplitudes.get(root, self.values[root]) for root in derived.roots))
        frozen = carriers.frozen.get(node, frozenset())
        arguments, known = arguments_of(node), record(node.target)
        at, moving = fill(arguments, self.values), fill(arguments, self.values | amplitudes)
        mixed = {name: at[name] if name in frozen else moving[name] for name in arguments}
        if known.kind == "normalisation" and not known.steady(at):
            return normalise(node.target, mixed, at)
        sides = known.factors or ()
        if sides and not frozen and all(arguments[side] in carriers.signals for side in sides):
            first, second = (mixed | {side: at[side]} for side in sides)  # both carry in turn
            return invoke(node.target, first) + invoke(node.target, second)
        return invoke(node.target, mixed)

    def _gate(self, node: Node, amplitudes: Values, sign: Tensor) -> Any:
        """Give the gate's derivative along the amplitude, with a random sign."""
        roots = tuple(used for used in self.network.carriers.sources(node) if used in amplitudes)
        if node in self.slopes:
            return self.slopes[node] * amplitudes[roots[0]] * sign
        derived = self.network.carriers.derived(node) or Derived(roots, (node,))
        phi, at = derived.function(self.values), tuple(self.values[used] for used in derived.roots)
        moving = tuple(amplitudes.get(used, torch.zeros_like(self.values[used])) for used in derived.roots)
        _, along, *_ = torch.func.jvp(lambda *z: _first(phi(*z)), at, moving)
        through: Tensor = along * sign
        return (through, None) if isinstance(self.values[node], tuple) else through


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) else value
