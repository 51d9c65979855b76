"""Carriers of path energy in a captured graph, and nodes that only steer gates (docs/theory.md, section 4).

A product of two tensors that both depend on the inputs is no linear step: one factor has to be the gate, frozen at its
value. The factor that ends more like a gate is one: a statistic or a denominator (a normalisation's 1/std) before a
factor bounded in [0, 1] (softmax, sigmoid), before tanh, before any other activation, before none. Where both end
alike, both carry in turn, as the product rule has it, unless they are functions of one tensor entry by entry, such
as x * sigmoid(x): then the product is an activation. In attention the weights are the gate, values carry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from capalloc._graph.capture import Graph, module_path
from capalloc._graph.structure import GateSide, Structure, is_complex, nodes_in, reached
from capalloc._operators.calls import arguments_of, bind, invoke
from capalloc._operators.records import record

Products = Mapping[str, GateSide]
GATE_SIDES = ("left", "right", "both")
NO_PRODUCTS: Products = {}
NO_PATH = "outputs do not depend on inputs along any path that carries energy"
SQUARED = (
    "a signal times itself or its linear map: paths that meet again in both factors are counted as if they were of two "
    "signals, so that entries with themselves have half their energy"
)


@dataclass(frozen=True)
class Derived:
    """The calls that make a node of the nodes `roots`, in order: a product, entry by entry, a weight, a real tensor."""

    roots: tuple[Node, ...]
    calls: tuple[Node, ...]

    def __str__(self) -> str:
        return ", ".join(str(call.target) for call in self.calls)

    def __call__(self, *values: Any) -> Any:
        """Make the node of other values of what the calls read."""
        known = dict(zip(self.given, values, strict=True))
        return self.function(known)(*(known[root] for root in self.roots))

    @property
    def given(self) -> list[Node]:
        """List what the calls read from outside, the roots first."""
        return [*self.roots, *sorted(self.reads() - {*self.roots}, key=lambda node: node.name)]

    @property
    def root(self) -> Node:
        return self.roots[0]

    def reads(self) -> set[Node]:
        """List the nodes whose values the calls need from outside."""
        return {used for node in self.calls for used in node.all_input_nodes} - set(self.calls)

    def function(self, values: Mapping[Node, Any]) -> Callable[..., Any]:
        """Give what the calls make of other values of the roots, everything else as in `values`."""

        def phi(*z: Tensor) -> Any:
            as_wide = lambda dtype: z[0].dtype.to_complex() if dtype.is_complex else dtype  # noqa: E731
            made = {used: values[used] for used in self.reads() - {*self.roots}}
            made |= zip(self.roots, z, strict=True)
            for call in self.calls:
                args, kwargs = map_arg((call.args, dict(call.kwargs)), lambda a: made[a])
                args, kwargs = pytree.tree_map_only(torch.dtype, as_wide, (args, kwargs))
                made[call] = invoke(call.target, bind(call.target, args, kwargs))
            return made[self.calls[-1]]

        return phi


@dataclass(frozen=True)
class Carriers:
    """Nodes of a graph that carry path energy, and how; `find` decides it."""

    carrying: frozenset[Node] = frozenset()
    frozen: Mapping[Node, frozenset[str]] = field(default_factory=dict)  # product -> its arguments that are gates
    self_gated: Mapping[Node, Derived] = field(default_factory=dict)
    made: Mapping[Node, Derived] = field(default_factory=dict)  # weight made of parameters -> how
    linear: Mapping[Node, Derived] = field(default_factory=dict)  # real end of a stretch of complex numbers -> it
    bent: Mapping[Node, Node] = field(default_factory=dict)  # function of a parameter's entries -> the parameter
    stretches: Mapping[Node, Derived] = field(default_factory=dict)  # function of a parameter's entries -> how
    several: Mapping[Node, Derived] = field(default_factory=dict)  # of them, those of one parameter that differ
    steering: frozenset[str] = frozenset()  # parameters that only steer gates
    also_steering: frozenset[str] = frozenset()  # parameters that carry, and steer gates too
    in_complex: frozenset[str] = frozenset()  # parameters that weigh complex numbers, which rules take as constants
    signals: frozenset[Node] = frozenset()  # depend on the inputs
    loose: frozenset[Node] = frozenset()  # weights whose parameters may hold fewer than there are
    squares: tuple[Node, ...] = ()  # products of a signal with itself, moved about, in which both factors carry
    data_gates: tuple[Node, ...] = ()  # calls that carry energy by gates of the examples' own, besides activations

    @property
    def unseen(self) -> frozenset[str]:
        """Parameters that carry no energy but move the outputs."""
        return self.steering | self.in_complex

    @cached_property
    def reparametrised(self) -> frozenset[Node]:
        """Parameters that reach the model through a function of them."""
        return frozenset(self.bent.values()).union(*(derived.roots for derived in self.made.values()))

    def decouples(self, node: Node) -> bool:
        """Tell whether a node is a gate of paths from the inputs, where linear segments end."""
        gate = node in self.self_gated or record(node.target).decouples
        return gate and node in self.carrying and node in self.signals

    def derived(self, node: Node) -> Derived | None:
        """Give the calls that a node stands for, if it is not one alone."""
        return self.self_gated.get(node) or self.made.get(node) or self.linear.get(node)

    def sources(self, node: Node) -> Iterable[Node]:
        """List what a call reads except as a gate, each once."""
        if (derived := self.derived(node)) is not None:
            return derived.roots
        gates = self.frozen.get(node, frozenset())
        return dict.fromkeys(nodes_in({name: a for name, a in arguments_of(node).items() if name not in gates}))

    def feeds(self, node: Node) -> list[Node]:
        """List the nodes whose paths go on through `node`, parameters among them."""
        return [used for used in self.sources(node) if used in self.carrying] if node in self.carrying else []

    def notes(self) -> list[str]:
        """Say where energies of paths are not those of the network even with gates frozen."""
        places = dict.fromkeys(module_path(node) or str(node.target) for node in self.squares)
        return [f"{SQUARED} ({', '.join(places)})"] if places else []

    def reads(self, node: Node) -> set[Node]:
        """List the nodes whose values a trace needs at `node`."""
        derived = self.derived(node) or self.stretches.get(node)
        return {*node.all_input_nodes, *(derived.reads() if derived else ())}


def find(graph: Graph, products: Products = NO_PRODUCTS) -> Carriers:
    """Decide what every node of a graph carries; `products` sets the gate of a module's products by hand."""
    structure = Structure.of(graph)
    _check_products(graph, structure, products)
    frozen: dict[Node, frozenset[str]] = {}
    self_gated: dict[Node, Derived] = {}
    made: dict[Node, Derived] = {}
    linear: dict[Node, Derived] = {}
    for node in graph.calls():
        made |= {w: Derived(*structure.made_of(w)) for w in structure.made(node) if not is_complex(w)}
        if structure.leaves_complex(node):
            roots, calls = structure.made_of(node, is_complex)
            linear[node] = Derived(tuple(r for r in roots if r in structure.signals or r.op == "placeholder"), calls)
        steered_by = record(node.target).steered_by
        if steered_by and node in structure.signals:
            _check_attention(node, products)
            frozen[node] = frozenset(steered_by)
        elif structure.filters_itself(node):
            frozen[node] = frozenset(("weight",))
        elif tangled := structure.tangled(node):
            frozen[node] = frozenset(tangled)
        elif (sides := structure.factors(node)) is not None:
            chosen = products.get(module_path(node))
            one = None if chosen else structure.common(node)
            if one is not None:
                self_gated[node] = Derived((one,), structure.between(one, node))
            else:
                frozen[node] = frozenset(_gates(sides, chosen or structure.steers(node)))
    bent = {node: leaf for node, leaf in structure.bent.items() if node not in made}
    stretches = {node: Derived((leaf,), structure.between(leaf, node)) for node, leaf in bent.items()}
    several = {node: stretches[node] for node in _several_ways(stretches)}
    signals = frozenset(structure.signals)
    found = Carriers(frozenset(), frozen, self_gated, made, linear, bent, stretches, several, signals=signals)
    carrying = reached({graph.output}, lambda node: structure.live.intersection(found.sources(node)))
    reachable = reached({graph.output}, lambda node: structure.live.intersection(node.all_input_nodes))
    gates = {gate for node, args in frozen.items() for name in args for gate in nodes_in(arguments_of(node)[name])}
    opening = reached(gates & reachable, lambda node: structure.live.intersection(node.all_input_nodes))
    names = {node: graph.params[node.name] for node in graph.nodes if node.name in graph.params}
    constants = {used for derived in linear.values() for used in derived.given if used not in signals}
    weighing = {leaf for used in constants for leaf in (used, *structure.made_of(used)[0])}
    return replace(
        found,
        carrying=frozenset(carrying),
        steering=frozenset(name for node, name in names.items() if node in reachable - carrying),
        also_steering=frozenset(name for node, name in names.items() if node in carrying & opening),
        in_complex=frozenset(name for node, name in names.items() if node in weighing & carrying),
        loose=frozenset(carrying & structure.loose),
        squares=tuple(n for n in graph.calls() if n in carrying and _squares(n, structure, found)),
        data_gates=tuple(n for n in graph.calls() if n in carrying and structure.needs_data(n, frozen.get(n, ()))),
    )


def _several_ways(stretches: Mapping[Node, Derived]) -> list[Node]:
    """List functions of parameters that reach the model as others too, or as they are: a and 1 - a."""
    used: dict[Node, list[Node]] = {}
    for node, stretch in stretches.items():
        if any(user not in stretches for user in node.users):
            used.setdefault(stretch.root, []).append(node)
    several = {
        leaf
        for leaf, nodes in used.items()
        if len({_told(node, leaf) for node in nodes}) > 1 or used_as_it_is(leaf, [stretches[node] for node in nodes])
    }
    return [node for leaf in used for node in used[leaf] if leaf in several]


def used_as_it_is(leaf: Node, stretches: Iterable[Derived]) -> bool:
    """Tell whether a parameter is read elsewhere than in some functions of it."""
    inside = {call for stretch in stretches if stretch.root is leaf for call in stretch.calls}
    return any(user not in inside for user in leaf.users)


def _told(node: Node, leaf: Node) -> str:
    """Write down a function of a parameter."""
    if node is leaf or node.op != "call_function":
        return node.name
    args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda a: _told(a, leaf))
    return f"{node.target}({args}, {kwargs})"


def check_gates(carriers: Carriers, gates: str) -> None:
    """Refuse to do without data where a call's gates are the examples' own."""
    if gates != "data" and carriers.data_gates:
        node = carriers.data_gates[0]
        raise ValueError(
            f"gates={gates!r} gives the slopes of activations, but {node.target} in module "
            f"{module_path(node) or '(the model itself)'!r} has gates or statistics that depend on the inputs; "
            "use gates='data'"
        )


def _squares(node: Node, structure: Structure, carriers: Carriers) -> bool:
    """Tell whether a product without a gate is of one signal with itself or its linear map: h @ h.T, h * linear(h)."""
    if carriers.frozen.get(node, True) or (sides := structure.factors(node)) is None:
        return False
    given = arguments_of(node)
    first, second = (_unmoved(given[side], structure.signals) for side in sides)
    same = first is second or second is _mapped(first, structure.signals) or first is _mapped(second, structure.signals)
    return same and first in structure.signals and second in structure.signals


def _mapped(node: Node, signals: set[Node]) -> Node | None:
    """Find the signal that a dense layer or a convolution reads; None for what is neither."""
    read = arguments_of(node).get("input") if record(node.target).kind in ("dense", "convolution") else None
    return _unmoved(read, signals) if isinstance(read, Node) else None


def _unmoved(node: Node, signals: set[Node]) -> Node:
    """Find the signal that a node holds the entries of, moved about."""
    while node.op == "call_function" and record(node.target).moves:
        moved = [used for used in node.all_input_nodes if used in signals]
        if len(moved) != 1:
            break
        node = moved[0]
    return node


def _gates(sides: tuple[str, str], side: GateSide) -> tuple[str, ...]:
    return {"left": sides[:1], "right": sides[1:], "both": ()}[side]


def _check_products(graph: Graph, structure: Structure, products: Products) -> None:
    for path, side in products.items():
        if side not in GATE_SIDES:
            raise ValueError(
                f"products[{path!r}] must be one of {GATE_SIDES}, the factor that is the gate; got {side!r}"
            )
    known = {module_path(node) for node in graph.calls() if structure.factors(node) or record(node.target).steered_by}
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
