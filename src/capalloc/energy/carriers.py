"""Which nodes of a captured graph carry path energy, and which only steer gates (docs/theory.md, section 4).

A product of two tensors that both depend on the inputs is no linear step: one factor has to be the gate, frozen at its
value. The factor that ends more like a gate is one: a statistic or a denominator (a normalisation's 1/std) before a
factor bounded in [0, 1] (softmax, sigmoid), before tanh, before any other activation, before none. Where both end
alike, both carry in turn, as the product rule has it, unless they are functions of one tensor entry by entry, such
as x * sigmoid(x): then the product is an activation. In attention the weights are the gate, values carry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from capalloc.energy.capture import Graph, module_path
from capalloc.energy.gate_ranks import (
    ACTIVATION,
    BENDING,
    COPIES,
    MOVES,
    NEEDS_DATA,
    PIECES,
    POINTWISE,
    PRODUCTS,
    STATISTIC,
    SUMS,
    rank_by_operator,
    see_through,
)
from capalloc.energy.rules import bind

Side = Literal["left", "right", "both"]
Products = Mapping[str, Side]
SIDES = ("left", "right", "both")
NO_PRODUCTS: Products = {}
aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class Activation:
    """A product that is a function of one tensor, entry by entry: the calls from `root` to it, in order."""

    root: Node
    calls: tuple[Node, ...]

    def reads(self) -> set[Node]:
        """Every node whose value the calls need from outside."""
        return {used for node in self.calls for used in node.all_input_nodes} - set(self.calls)


@dataclass(frozen=True)
class Carriers:
    """What carries path energy in a graph; `find` decides it."""

    carrying: frozenset[Node] = frozenset()
    frozen: Mapping[Node, frozenset[str]] = field(default_factory=dict)  # product -> its arguments that are gates
    activations: Mapping[Node, Activation] = field(default_factory=dict)
    bent: Mapping[Node, Node] = field(default_factory=dict)  # function of a parameter's entries -> the parameter
    steering: frozenset[str] = frozenset()  # parameters that only steer gates, all or some of their entries
    signals: frozenset[Node] = frozenset()  # depend on the inputs
    data_gates: tuple[Node, ...] = ()  # calls that carry energy by gates of the examples' own, besides activations

    @cached_property
    def reparametrised(self) -> frozenset[Node]:
        """Parameters that reach the model through a function of their entries."""
        return frozenset(self.bent.values())


def find(graph: Graph, products: Products = NO_PRODUCTS) -> Carriers:
    """Decide for every node of the graph; `products` sets the gate of a module's products by hand."""
    structure = _Structure.of(graph)
    _check_products(graph, structure, products)
    frozen: dict[Node, frozenset[str]] = {}
    activations: dict[Node, Activation] = {}
    for node in graph.calls():
        if node in structure.signals and node.target is ATTENTION:
            _check_attention(node, products)
            frozen[node] = frozenset({"query", "key", "attn_mask"})
        elif (sides := structure.factors(node)) is not None:
            chosen = products.get(module_path(node))
            one = None if chosen else structure.common(node)
            if one is not None:
                activations[node] = Activation(one, structure.between(one, node))
            else:
                frozen[node] = frozenset(_gates(sides, chosen or structure.steers(node)))

    def carried(node: Node) -> list[Node]:
        if node in activations:
            return [activations[node].root]
        gates = frozen.get(node, frozenset())
        kept = {name: a for name, a in arguments(node).items() if name not in gates}
        return [used for used in nodes_in(kept) if used in structure.live]

    carrying = _reached(graph.output, carried)
    reachable = _reached(graph.output, lambda node: [used for used in node.all_input_nodes if used in structure.live])
    names = {node: graph.params[node.name] for node in graph.nodes if node.name in graph.params}
    return Carriers(
        carrying=frozenset(carrying),
        frozen=frozen,
        activations=activations,
        bent=structure.bent(),
        steering=frozenset(
            name
            for node, name in names.items()
            if node in reachable and (node not in carrying or _is_split(node, carrying, reachable, structure))
        ),
        signals=frozenset(structure.signals),
        data_gates=tuple(n for n in graph.calls() if n in carrying and structure.needs_data(n, frozen.get(n, ()))),
    )


def check_gates(carriers: Carriers, gates: str) -> None:
    """Refuse to do without data where a call's gates are the examples' own."""
    if gates != "data" and carriers.data_gates:
        node = carriers.data_gates[0]
        raise ValueError(
            f"gates={gates!r} gives the slopes of activations, but {node.target} in module "
            f"{module_path(node) or '(the model itself)'!r} has gates or statistics that depend on the inputs; "
            "use gates='data'"
        )


def arguments(node: Node) -> dict[str, Any]:
    """A call's arguments by their schema names."""
    return bind(node.target, node.args, dict(node.kwargs)) if node.op == "call_function" else {}


def nodes_in(tree: Any) -> Iterator[Node]:
    """The nodes among arguments."""
    return (a for a in pytree.tree_leaves(tree, is_leaf=lambda a: isinstance(a, Node)) if isinstance(a, Node))


@dataclass
class _Structure:
    """What a forward pass over the graph tells of every node."""

    signals: set[Node] = field(default_factory=set)  # depend on the inputs through floating point
    live: set[Node] = field(default_factory=set)  # those, and what is made of parameters
    ranks: dict[Node, int] = field(default_factory=dict)
    weights: set[Node] = field(default_factory=set)  # made of parameters, with energies that are a weight's
    #: node -> the nodes it is a function of entry by entry, each of the next, itself last
    chains: dict[Node, tuple[Node, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph) -> _Structure:
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

    def bent(self) -> dict[Node, Node]:
        """Functions of one parameter's entries, such as 1 + w or sigmoid(w) -> the parameter."""
        made = {n: c[0] for n, c in self.chains.items() if len(c) > 1 and n not in self.signals}
        return {n: leaf for n, leaf in made.items() if self._bends(leaf, n)}

    def _bends(self, leaf: Node, node: Node) -> bool:
        if leaf.op != "placeholder" or leaf not in self.live:
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
        chain = self.chains[node]
        if len(chain) > 1 and self._bends(chain[0], node):
            return True
        lives = [used for used in node.all_input_nodes if used in self.live]
        return (node.target in MOVES | COPIES or node.target in PRODUCTS) and self.weights.issuperset(lives)

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


def _gates(sides: tuple[str, str], side: Side) -> tuple[str, ...]:
    return {"left": sides[:1], "right": sides[1:], "both": ()}[side]


def _reached(start: Node, towards: Any) -> set[Node]:
    found, pending = {start}, [start]
    while pending:
        for used in towards(pending.pop()):
            if used not in found:
                found.add(used)
                pending.append(used)
    return found


def _is_split(parameter: Node, carrying: set[Node], reachable: set[Node], structure: _Structure) -> bool:
    """Whether pieces of what the parameter makes go to gates alone, other pieces on."""
    if parameter not in carrying:
        return False
    pending, seen = [parameter], {parameter}
    while pending:
        node = pending.pop()
        for user in node.users:
            if user in seen or user not in reachable:
                continue
            if user.target in PIECES and user not in carrying:
                return True
            seen.add(user)
            weighs = node not in structure.signals and user in structure.signals
            if user in carrying and (weighs or user.target in MOVES | COPIES | SUMS):
                pending.append(user)
    return False


def _check_products(graph: Graph, structure: _Structure, products: Products) -> None:
    for path, side in products.items():
        if side not in SIDES:
            raise ValueError(f"products[{path!r}] must be one of {SIDES}, the factor that is the gate; got {side!r}")
    known = {module_path(node) for node in graph.calls() if structure.factors(node) or node.target is ATTENTION}
    unknown = sorted(set(products) - known)
    if unknown:
        raise ValueError(
            f"products names modules {unknown}, which multiply no two tensors that depend on the inputs; "
            f"those that do are {sorted(known)}"
        )


def _check_attention(node: Node, products: Products) -> None:
    side = products.get(module_path(node), "left")
    if side != "left":
        raise ValueError(
            f"products[{module_path(node)!r}] is {side!r}, but scaled_dot_product_attention is one operator, whose "
            "attention weights (left) are the gate; to let queries and keys carry write it as softmax and matmul, "
            "which attn_implementation='eager' does"
        )


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
