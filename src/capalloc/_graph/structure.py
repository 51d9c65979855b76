"""The structure of a captured graph, before any value is known: dependence, weights, gate ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node

from capalloc._graph.capture import Graph
from capalloc._operators.calls import arguments_of, leaves
from capalloc._operators.records import GateRank, named, record

aten = torch.ops.aten
#: Operators that make one number, 0 unless they name it.
ZEROS = {getattr(aten, name).default for name in ("zeros", "zeros_like", "new_zeros", "full", "full_like", "new_full")}
#: Functions of entries that are flat somewhere where they are not 0.
FLAT_IN_PART = {*named("clamp clamp_min clamp_max hardtanh relu6 hardsigmoid threshold")}
GateSide = Literal["left", "right", "both"]
#: Calls that multiply signals by what parameters make.
MULTIPLYING = ("dense", "convolution", "normalisation", "product", "contraction")
#: Entries of a Jacobian up to which a product of parameters is taken as a weight that they make.
PRODUCT_LIMIT = 2**20


@dataclass
class Structure:
    """Dependence, weights and ranks of every node, found in a forward pass over the graph."""

    signals: set[Node] = field(default_factory=set)  # depend on the inputs through floating point
    live: set[Node] = field(default_factory=set)  # those, and what is made of parameters
    #: 0 whatever the inputs, such as the state that a scan starts from, or a signal times 0
    zeros: set[Node] = field(default_factory=set)
    ranks: dict[Node, GateRank] = field(default_factory=dict)
    bent: dict[Node, Node] = field(default_factory=dict)  # function of a parameter's entries -> the parameter
    weights: set[Node] = field(default_factory=set)  # made of parameters, with energies that are a weight's
    #: made of parameters, multiplied with signals, and small enough to be taken as weights by their Jacobian
    products: set[Node] = field(default_factory=set)
    loose: set[Node] = field(default_factory=set)  # weights whose parameters may hold fewer than there are
    #: node -> the nodes it is a function of entry by entry, each of the next, itself last
    chains: dict[Node, tuple[Node, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph) -> Structure:
        """Walk the graph once."""
        found = cls()
        for node in graph.nodes:
            if found._is_zero(node, graph):
                found.zeros.add(node)
            elif node.op == "placeholder":
                if node.name == graph.input:
                    found.signals.add(node)
                if node.name == graph.input or node.name in graph.params:
                    found.live.add(node)
            elif node.op == "call_function" and record(node.target).kind != "constant" and _is_floating(node):
                if any(used in found.signals for used in node.all_input_nodes):
                    found.signals.add(node)
                if any(used in found.live for used in node.all_input_nodes):
                    found.live.add(node)
            found.chains[node] = found._chain(node)
            found.products.update(found._products(node))
            if found._bends(node):
                found.bent[node] = found.chains[node][0]
            if found._is_weight(node):
                found.weights.add(node)
            found.ranks[node] = found._rank(node)
        return found

    def factors(self, node: Node) -> tuple[str, str] | None:
        """Name the two factors of a product, if paths end in both and one depends on the inputs.

        Paths end too in what is made of parameters alone and is no weight: sums of biases, a softmax of parameters.
        """
        names = record(node.target).factors
        if names is None or node not in self.signals:
            return None
        given = arguments_of(node)
        return names if all(self._ends_paths(given[name]) for name in names) else None

    def tangled(self, node: Node) -> list[str]:
        """Name the factors of a weight that are no weights, such as the norm that weight normalisation divides by."""
        if node not in self.weights or node in self.bent:
            return []
        given = arguments_of(node)
        return [name for name in record(node.target).factors or () if self._makes_no_weight(given[name])]

    def filters_itself(self, node: Node) -> bool:
        """Tell whether a layer has weights that depend on the inputs, as what it reads does: they are its gate."""
        given = arguments_of(node)
        weighs = record(node.target).kind in ("dense", "convolution")
        return weighs and given.get("weight") in self.signals and given.get("input") in self.signals

    def made(self, node: Node) -> list[Node]:
        """List weights and biases of a call that a graph of parameters makes, other than entry by entry."""
        known = record(node.target)
        if node not in self.signals or known.kind not in MULTIPLYING:
            return []
        given = arguments_of(node)
        read = [given.get(name) for name in known.factors or ("weight", "bias")]
        found = [a for a in read if isinstance(a, Node) and self._makes_no_weight(a)]
        return [a for a in found if a in self.products] if known.factors else found

    def leaves_complex(self, node: Node) -> bool:
        """Tell whether a call makes real numbers of complex ones that depend on the inputs."""
        return not is_complex(node) and any(u in self.signals and is_complex(u) for u in node.all_input_nodes)

    def made_of(
        self, node: Node, among: Callable[[Node], bool] = lambda node: node.op == "call_function"
    ) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        """Give what a node is made of by calls `among`, and those calls, in order."""
        inside = reached([node], lambda call: filter(among, self._before(call)))
        roots = {used for call in inside for used in self._before(call) if not among(used)}
        return tuple(n for n in self.chains if n in roots), tuple(n for n in self.chains if n in inside)

    def _before(self, node: Node) -> set[Node]:
        return self.live.intersection(node.all_input_nodes)

    def _ends_paths(self, factor: Any) -> bool:
        return factor in self.live and factor not in self.weights and factor not in self.products

    def _makes_no_weight(self, factor: Any) -> bool:
        """Tell whether a factor is made of parameters alone in another way than entry by entry."""
        return factor in self.live and factor not in self.weights and factor not in self.signals

    def _products(self, node: Node) -> list[Node]:
        """List what `node` shows to be taken by its Jacobian: itself, or what it multiplies signals by."""
        if node not in self.live or node.op != "call_function":
            return []
        known, given = record(node.target), arguments_of(node)
        if node in self.signals:
            factors = [given[name] for name in known.factors or ()] if known.kind == "contraction" else []
            return [a for a in factors if self._makes_no_weight(a) and self._is_small(a)]
        if known.moves:
            made = {used for used in node.all_input_nodes if used in self.live} <= self.products
        elif known.kind in ("product", "contraction"):
            live = [a for a in nodes_in(given) if a in self.live]
            outer = len(live) > 1 and numel(node) > max(map(numel, live))
            made = known.kind == "contraction" or outer or any(map(self._makes_no_weight, live))
        elif known.kind == "quotient":
            made = given["self"] in self.products
        else:
            made = node.target in FLAT_IN_PART
        if not made or not _multiplies(node):
            return []
        if self._is_small(node):
            return [node]
        self.loose.add(node)
        return []

    def _is_small(self, node: Node) -> bool:
        """Tell whether the Jacobian of what parameters make is held without further thought."""
        return numel(node) * sum(map(numel, self.made_of(node)[0])) <= PRODUCT_LIMIT

    def needs_data(self, node: Node, frozen: Iterable[str]) -> bool:
        """Tell whether a call that carries energy has gates or statistics of the examples' own."""
        given = arguments_of(node)
        if any(given[name] in self.signals for name in frozen):
            return True
        if self.factors(node) and len(self.chains[node]) == 1:
            return True
        known = record(node.target)
        own = known.kind == "softmax" or (known.kind == "normalisation" and not known.steady(given))
        return node in self.signals and own

    def steers(self, node: Node) -> GateSide:
        """Tell which factor ends more like a gate."""
        known, given = record(node.target), arguments_of(node)
        if known.kind == "quotient":
            return "right"
        assert known.factors is not None
        left, right = (given[name] for name in known.factors)
        order = [(self.ranks[factor], factor not in self.signals) for factor in (left, right)]
        return "both" if order[0] == order[1] else "left" if order[0] > order[1] else "right"

    def common(self, node: Node) -> Node | None:
        """Find the nearest tensor that a product's factors are both functions of, entry by entry."""
        chain = self.chains[node]
        return chain[-2] if len(chain) > 1 else None

    def between(self, root: Node, node: Node) -> tuple[Node, ...]:
        """List the calls that lead from `root` to `node`, in order."""
        inside = reached([node], lambda call: () if call is root else self._before(call))
        return tuple(n for n in self.chains if n in inside and n is not root)

    def _is_zero(self, node: Node, graph: Graph) -> bool:
        if node.op != "call_function":
            constant = None if node.name in graph.params else graph.constants.get(node.name)
            return isinstance(constant, Tensor) and constant.is_floating_point() and not bool(constant.any())
        known, given = record(node.target), arguments_of(node)
        if node.target in ZEROS:
            return not given.get("fill_value", 0)
        if known.factors:
            numerators = known.factors[:1] if known.kind == "quotient" else known.factors
            return any(given[name] == 0 or given[name] in self.zeros for name in numerators)
        moved = known.moves and node.all_input_nodes and not given.get("value")  # what it is padded with
        return bool(moved) and self.zeros.issuperset(node.all_input_nodes)

    def _bends(self, node: Node) -> bool:
        """Tell whether a node is a function of one parameter's entries, such as 1 + w or sigmoid(w)."""
        leaf = self.chains[node][0]
        if leaf is node or leaf.op != "placeholder" or leaf not in self.live or node in self.signals:
            return False
        if any(call in self.products for call in self.chains[node]):
            return False
        return any(self._is_bend(call) for call in self.between(leaf, node))

    def _is_bend(self, call: Node) -> bool:
        kind, given = record(call.target).kind, arguments_of(call)
        lives = sum(a in self.live for a in nodes_in(given))
        divides = kind == "quotient" and given["other"] in self.live
        return kind in ("activation", "sum") or lives > 1 or divides

    def _is_weight(self, node: Node) -> bool:
        if node not in self.live or node in self.signals:
            return False
        if node.op == "placeholder" or node in self.bent:
            return True
        if node in self.products:
            return False
        known = record(node.target)
        if known.kind == "quotient":
            return arguments_of(node)["self"] in self.weights
        if known.factors:
            return any(used in self.weights for used in node.all_input_nodes)
        if known.kind == "selection" or not known.moves:
            return False
        floating = [used for used in node.all_input_nodes if used in self.live or _is_floating(used)]
        return not arguments_of(node).get("value") and all(u in self.weights or u in self.zeros for u in floating)

    def _rank(self, node: Node) -> GateRank:
        if node.op != "call_function" or not self._ends_paths(node):
            return GateRank.NONE
        known, given = record(node.target), arguments_of(node)
        exponent = given.get("exponent")
        if known.kind == "activation" and isinstance(exponent, int | float) and exponent < 0:
            return GateRank.STATISTIC
        if known.rank is not None:
            return known.rank
        if len(self.chains[node]) > 1 and self.factors(node):
            return GateRank.ACTIVATION
        if known.kind == "quotient":
            numerator = given["self"]
            return self.ranks[numerator] if self._ends_paths(numerator) else GateRank.STATISTIC
        used = [self.ranks[u] for u in node.all_input_nodes if self._ends_paths(u)]
        shows = known.moves or known.factors or known.kind == "statistic" or (known.kind == "sum" and len(used) == 1)
        return min(used) if used and shows else GateRank.NONE

    def _chain(self, node: Node) -> tuple[Node, ...]:
        used = [u for u in node.all_input_nodes if u in self.live]
        if node not in self.live or not used or not record(node.target).pointwise:
            return (node,)
        same_kind = all((u in self.signals) == (node in self.signals) for u in used)
        if not same_kind or any(_shape(u) != _shape(node) for u in used):
            return (node,)
        shared = _common_prefix([self.chains[u] for u in used])
        return (*shared, node)


def reached(starts: Iterable[Node], towards: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """Find all nodes that steps towards others lead to, those at the start among them."""
    found = {*starts}
    pending = [*found]
    while pending:
        new = set(towards(pending.pop())) - found
        found |= new
        pending += new
    return found


def _multiplies(node: Node) -> bool:
    """Tell whether all that reads a node, moved or not, multiplies by it."""

    def passes(user: Node) -> bool:
        known = record(user.target)
        return known.moves or (known.kind == "quotient" and arguments_of(user)["self"] is node)

    return all(record(user.target).kind in MULTIPLYING or (passes(user) and _multiplies(user)) for user in node.users)


def numel(node: Node) -> float:
    """Return the number of entries of a tensor, 0 of several, infinity where the data decide."""
    value = node.meta.get("val")
    number: Any = value.numel() if isinstance(value, Tensor) else 0  # or a symbol
    return math.inf if isinstance(number, torch.SymInt) else number


def nodes_in(tree: Any) -> list[Node]:
    return [a for a in leaves(tree) if isinstance(a, Node)]


def is_complex(node: Node) -> bool:
    """Tell whether a node computes complex numbers."""
    return any(isinstance(leaf, Tensor) and leaf.is_complex() for leaf in leaves(node.meta.get("val")))


def _is_floating(node: Node) -> bool:
    made = [leaf for leaf in leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]
    return any(leaf.is_floating_point() or leaf.is_complex() for leaf in made)


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
