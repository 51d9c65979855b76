"""What a captured graph tells of every node before any value is known: dependence, weights, gate ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from capalloc._graph.calls import bind
from capalloc._graph.capture import Graph
from capalloc._graph.operators import (
    ACTIVATION,
    BENDING,
    COPIES,
    MOVES,
    NEEDS_DATA,
    POINTWISE,
    PRODUCTS,
    STATISTIC,
    SUMS,
    rank_by_operator,
    see_through,
)

Side = Literal["left", "right", "both"]
aten = torch.ops.aten


@dataclass
class Structure:
    """What a forward pass over the graph tells of every node."""

    signals: set[Node] = field(default_factory=set)  # depend on the inputs through floating point
    live: set[Node] = field(default_factory=set)  # those, and what is made of parameters
    ranks: dict[Node, int] = field(default_factory=dict)
    bent: dict[Node, Node] = field(default_factory=dict)  # function of a parameter's entries -> the parameter
    weights: set[Node] = field(default_factory=set)  # made of parameters, with energies that are a weight's
    #: node -> the nodes it is a function of entry by entry, each of the next, itself last
    chains: dict[Node, tuple[Node, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph) -> Structure:
        """Walk the graph once."""
        found = cls()
        for node in graph.nodes:
            if node.op == "placeholder":
                if node.name == graph.input:
                    found.signals.add(node)
                if node.name == graph.input or node.name in graph.params:
                    found.live.add(node)
            elif node.op == "call_function" and node.target is not aten.detach.default and _is_floating(node):
                if any(used in found.signals for used in node.all_input_nodes):
                    found.signals.add(node)
                if any(used in found.live for used in node.all_input_nodes):
                    found.live.add(node)
            found.chains[node] = found._chain(node)
            if found._bends(node):
                found.bent[node] = found.chains[node][0]
            if found._is_weight(node):
                found.weights.add(node)
            found.ranks[node] = found._rank(node)
        return found

    def factors(self, node: Node) -> tuple[str, str] | None:
        """Names of the two factors of a product, if paths end in both and one depends on the inputs.

        Paths end too in what is made of parameters alone and is no weight: sums of biases, a softmax of parameters.
        """
        if node not in self.signals or node.target not in PRODUCTS:
            return None
        left, right = PRODUCTS[node.target]
        given = arguments(node)
        return (left, right) if self._ends_paths(given[left]) and self._ends_paths(given[right]) else None

    def tangled(self, node: Node) -> list[str]:
        """Factors of a weight that are no weights, such as the norm that weight normalisation divides by."""
        if node not in self.weights or node.target not in PRODUCTS or node in self.bent:
            return []
        given = arguments(node)
        return [name for name in PRODUCTS[node.target] if self._ends_paths(given[name])]

    def _ends_paths(self, factor: Any) -> bool:
        return factor in self.live and factor not in self.weights

    def needs_data(self, node: Node, frozen: Iterable[str]) -> bool:
        """Whether a call that carries energy has gates or statistics of the examples' own."""
        if any(arguments(node)[name] in self.signals for name in frozen):
            return True
        if self.factors(node) and len(self.chains[node]) == 1:
            return True
        if node.target is aten.instance_norm.default and not arguments(node)["use_input_stats"]:
            return False
        return node in self.signals and node.target in NEEDS_DATA

    def steers(self, node: Node) -> Side:
        """Which factor ends more like a gate."""
        if node.target is aten.div.Tensor:
            return "right"
        left, right = (arguments(node)[name] for name in PRODUCTS[node.target])
        order = [(self.ranks[factor], factor not in self.signals) for factor in (left, right)]
        return "both" if order[0] == order[1] else "left" if order[0] > order[1] else "right"

    def common(self, node: Node) -> Node | None:
        """The nearest tensor that a product's factors are both functions of, entry by entry."""
        chain = self.chains[node]
        return chain[-2] if len(chain) > 1 else None

    def between(self, root: Node, node: Node) -> tuple[Node, ...]:
        """The calls that lead from `root` to `node`, in order."""
        inside = {root}
        pending = [node]
        while pending:
            current = pending.pop()
            if current not in inside:
                inside.add(current)
                pending += [used for used in current.all_input_nodes if used in self.live]
        return tuple(n for n in self.chains if n in inside and n is not root)

    def _bends(self, node: Node) -> bool:
        """Whether a node is a function of one parameter's entries, such as 1 + w or sigmoid(w)."""
        leaf = self.chains[node][0]
        if leaf is node or leaf.op != "placeholder" or leaf not in self.live or node in self.signals:
            return False
        return any(self._is_bend(call) for call in self.between(leaf, node))

    def _is_bend(self, call: Node) -> bool:
        lives = sum(a in self.live for a in nodes_in(arguments(call)))
        divides = call.target is aten.div.Tensor and arguments(call)["other"] in self.live
        return call.target in BENDING or call.target in SUMS or lives > 1 or divides

    def _is_weight(self, node: Node) -> bool:
        if node not in self.live or node in self.signals:
            return False
        if node.op == "placeholder":
            return True
        if node in self.bent:
            return True
        if node.target is aten.div.Tensor:
            return arguments(node)["self"] in self.weights
        if node.target in PRODUCTS:
            return any(used in self.weights for used in node.all_input_nodes)
        lives = [used for used in node.all_input_nodes if used in self.live]
        return node.target in MOVES | COPIES and self.weights.issuperset(lives)

    def _rank(self, node: Node) -> int:
        if node.op != "call_function" or not self._ends_paths(node):
            return 0
        own = rank_by_operator(node)
        if own is not None:
            return own
        if node.target in PRODUCTS and len(self.chains[node]) > 1 and self.factors(node):
            return ACTIVATION
        if node.target is aten.div.Tensor:
            numerator = arguments(node)["self"]
            return self.ranks[numerator] if self._ends_paths(numerator) else STATISTIC
        used = [self.ranks[u] for u in node.all_input_nodes if self._ends_paths(u)]
        return min(used) if used and see_through(node.target, len(used)) else 0

    def _chain(self, node: Node) -> tuple[Node, ...]:
        used = [u for u in node.all_input_nodes if u in self.live]
        if node not in self.live or not used or node.target not in POINTWISE:
            return (node,)
        same_kind = all((u in self.signals) == (node in self.signals) for u in used)
        if not same_kind or any(_shape(u) != _shape(node) for u in used):
            return (node,)
        shared = _common_prefix([self.chains[u] for u in used])
        return (*shared, node)


def arguments(node: Node) -> dict[str, Any]:
    """A call's arguments by their schema names."""
    return bind(node.target, node.args, dict(node.kwargs)) if node.op == "call_function" else {}


def nodes_in(tree: Any) -> Iterator[Node]:
    """The nodes among arguments."""
    return (a for a in pytree.tree_leaves(tree, is_leaf=lambda a: isinstance(a, Node)) if isinstance(a, Node))


def _is_floating(node: Node) -> bool:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(leaf, Tensor) and (leaf.dtype.is_floating_point or leaf.dtype.is_complex) for leaf in leaves)


def _shape(node: Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _common_prefix(chains: list[tuple[Node, ...]]) -> tuple[Node, ...]:
    shared = []
    for nodes in zip(*chains, strict=False):
        if any(node is not nodes[0] for node in nodes):
            break
        shared.append(nodes[0])
    return tuple(shared)
