"""Residual blocks of a captured graph: sums of a skip and a branch that part at one node.

Only edges that carry path energy count (carriers.py). In a sum of two signals the block's source is the last node that
both come from. The skip is the term that the source reaches with fewer gates and weights, without any gate and
whole; the other one is the branch, which has a weight.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from torch.fx import Node

from capalloc._energy.carriers import NO_PATH, Carriers
from capalloc._graph.capture import Graph, module_path
from capalloc._operators.records import record

Cost = tuple[int, int, int]  # pieces taken, gates, weights on the cheapest way


@dataclass(frozen=True)
class ResidualBlock:
    """sum = skip + branch, both from `source`."""

    name: str
    sum: Node
    source: Node
    skip: Node
    branch: Node
    last_layer: str  # the branch's last layer with parameters, where it may be multiplied in the branch's place


@dataclass(frozen=True)
class Trails:
    """The paths of a captured graph, node by node."""

    graph: Graph
    carriers: Carriers
    order: dict[Node, int]  # of the signals that carry, inputs first
    ancestors: dict[Node, int]  # bit sets of `order`, each with itself

    @classmethod
    def of(cls, graph: Graph, carriers: Carriers) -> Trails:
        """Walk the graph once.

        Raises:
            ValueError: no path leads from the inputs to the outputs.

        """
        order: dict[Node, int] = {}
        ancestors: dict[Node, int] = {}
        for node in graph.nodes:
            fed = [ancestors[used] for used in carriers.feeds(node) if used in ancestors]
            if node.name == graph.input or fed:
                order[node] = len(order)
                own = 1 << order[node]
                for mine in fed:
                    own |= mine
                ancestors[node] = own
        if graph.output not in ancestors:
            raise ValueError(NO_PATH)
        return cls(graph, carriers, order, ancestors)

    def before(self, node: Node) -> list[Node]:
        """List the signals whose paths go on through a node."""
        return [used for used in self.carriers.feeds(node) if used in self.order]

    def weights(self, node: Node) -> list[str]:
        """Name the parameters that a node's paths go through there."""
        if record(node.target).kind == "sum":
            return []
        found: list[str] = []
        pending = [used for used in self.carriers.feeds(node) if used not in self.order]
        while pending:
            used = pending.pop(0)
            if used.name in self.graph.params:
                found.append(self.graph.params[used.name])
            pending += self.carriers.feeds(used)
        return found

    def trunk(self) -> list[Node]:
        """List the nodes that every path from the inputs to the outputs passes, in order."""
        output = self.graph.output
        inside = [n for n in self.order if self.ancestors[output] >> self.order[n] & 1]
        to_here = {inside[0]: 1}
        for node in inside[1:]:
            to_here[node] = sum(to_here[used] for used in self.before(node))
        onwards = Counter({output: 1})
        for node in reversed(inside):
            for used in self.before(node):
                onwards[used] += onwards[node]
        return [n for n in inside if to_here[n] * onwards[n] == to_here[output]]

    def common(self, first: Node, second: Node) -> Node:
        """Find the last node that both come from."""
        return self._nodes[(self.ancestors[first] & self.ancestors[second]).bit_length() - 1]

    def cost(self, source: Node, target: Node) -> Cost:
        """Count what the cheapest way from one node to another takes."""
        inside = self._between(source, target)
        costs: dict[Node, Cost] = {source: (0, 0, 0)}
        for node in inside:
            own = (_takes_a_piece(node), self.carriers.decouples(node), bool(self.weights(node)))
            reached = [costs[used] for used in self.before(node) if used in costs]
            if reached:
                costs[node] = tuple(a + b for a, b in zip(min(reached), own, strict=True))  # type: ignore[assignment]
        return costs[target]

    def weighing(self, source: Node, branch: Node) -> list[Node]:
        """List the nodes with parameters on the way from `source` to `branch`, the last one first."""
        way = reversed(self._between(source, branch))
        return [node for node in way if node is not source and self.weights(node)]

    def last_weighing(self, source: Node, branch: Node) -> Node | None:
        """Find the last node with parameters on the way from `source` to `branch`."""
        return next(iter(self.weighing(source, branch)), None)

    def last_layer(self, source: Node, branch: Node) -> str:
        """Name the last layer with parameters on the way from `source` to `branch`, after its weight."""
        node = self.last_weighing(source, branch)
        return self.weights(node)[0].removesuffix(".weight").removesuffix(".bias") if node else ""

    def stands_for(self, source: Node, branch: Node) -> bool:
        """Tell whether multiplying the last layer's parameters multiplies the branch, and nothing else."""
        last = self.last_weighing(source, branch)
        if last is None or any(self._uses[name] > 1 for name in self.weights(last)):
            return False
        pending, seen = [branch], {branch}
        while pending:
            node = pending.pop()
            if node is last:
                continue
            held = node in self.carriers.frozen or node in self.carriers.self_gated
            if not record(node.target).homogeneous or held or self.order[node] <= self.order[source]:
                return False
            pending += [used for used in self.before(node) if used not in seen]
            seen.update(self.before(node))
        return True

    def shares_weights(self, block: ResidualBlock) -> bool:
        """Tell whether a parameter on a block's branch is read elsewhere too."""
        way = self.weighing(block.source, block.branch)
        return any(self._uses[name] > 1 for node in way for name in self.weights(node))

    def blocks(self) -> tuple[ResidualBlock, ...]:
        """List the residual blocks that the outputs come from, inputs first."""
        found = list(_named([block for node in self.order if (block := self._block(node))]))
        return tuple(b if self.stands_for(b.source, b.branch) else replace(b, last_layer="") for b in found)

    @cached_property
    def _nodes(self) -> tuple[Node, ...]:
        return tuple(self.order)

    @cached_property
    def _uses(self) -> Counter[str]:
        """Count how often each parameter is read."""
        return Counter(name for node in self.order for name in self.weights(node))

    def _between(self, source: Node, target: Node) -> list[Node]:
        first, last, reach = self.order[source], self.order[target], self.ancestors[target]
        return [self._nodes[k] for k in range(first + 1, last + 1) if reach >> k & 1]

    def _block(self, node: Node) -> ResidualBlock | None:
        used = self.ancestors[self.graph.output] >> self.order[node] & 1
        terms = [a for a in node.args[:2] if isinstance(a, Node) and a in self.order]
        if not used or record(node.target).kind != "sum" or len(terms) < 2 or terms[0] is terms[1]:
            return None
        source = self.common(*terms)
        (skip, skip_cost), (branch, branch_cost) = sorted(
            ((term, self.cost(source, term)) for term in terms), key=lambda found: found[1][1:]
        )
        if skip_cost[:2] != (0, 0) or skip_cost[1:] == branch_cost[1:] or not branch_cost[2]:
            return None
        return ResidualBlock(module_path(node), node, source, skip, branch, self.last_layer(source, branch))


def _takes_a_piece(node: Node) -> bool:
    """Tell whether a node keeps a part of a signal; of an operator with several results the first is its signal."""
    taken = node.args[0] if node.target is operator.getitem else node
    return record(taken.target).kind == "piece"  # type: ignore[union-attr]


def _named(blocks: list[ResidualBlock]) -> Iterator[ResidualBlock]:
    """Name blocks of one module, or of none, after their last layer; count what is still alike."""
    modules = Counter(block.name for block in blocks)
    names = [b.name if b.name and modules[b.name] == 1 else b.last_layer or b.sum.name for b in blocks]
    several, seen = Counter(names), Counter[str]()
    for block, name in zip(blocks, names, strict=True):
        seen[name] += 1
        yield replace(block, name=f"{name}:{seen[name]}" if several[name] > 1 else name)
