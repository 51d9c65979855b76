"""Where the gates of a captured graph are, and their values batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from capalloc._decoupling.readers import Operation, Reader, reader_of
from capalloc._energy.rules import RULES
from capalloc._graph.calls import bind, invoke
from capalloc._graph.capture import Graph, capture, module_path
from capalloc._graph.interpret import fill
from capalloc._model.problem import Problem, seeded

aten = torch.ops.aten
PRODUCTS = (aten.bmm.default, aten.matmul.default)
MAXIMA = (aten.amax.default, aten.max.dim)
#: Operators that pass attention weights on as they are.
PASSED = (aten.dropout.default, aten.clone.default, aten.view.default, aten.expand.default, aten._unsafe_view.default)


@dataclass(frozen=True, eq=False)
class Site:
    """A gate of the network: an operator call of the graph, named after its module."""

    name: str
    kind: str
    operator: str
    node: Node
    reader: Reader
    axis: int  # of the examples in the result


@dataclass(frozen=True)
class Seen:
    """Gates of one site on some consecutive examples."""

    site: Site
    start: int  # number of the first example
    gates: Tensor  # (examples, units)
    operation: Operation


@dataclass(frozen=True)
class Gated:
    """A captured model with its gates in order of depth, and the products of signals that none of them describes."""

    problem: Problem
    graph: Graph
    sites: tuple[Site, ...]
    products: tuple[str, ...]
    depends: frozenset[Node]  # nodes that the inputs reach
    examples: int

    @classmethod
    def of(cls, problem: Problem, batch_size: int) -> Gated:
        """Capture the model; a second time at another batch size, which shows where the examples axis is."""
        examples = problem.count()
        size = min(batch_size, examples)
        graph = capture(problem, size, RULES)
        depends = _dependent(graph)
        other = capture(problem, 3 if graph.batch_size == 2 else 2, RULES)
        if other.batch_size == graph.batch_size:
            raise ValueError(
                f"the program was exported for exactly {graph.batch_size} examples, which hides where the examples "
                "axis is; export it with dynamic_shapes that leave the first axis free"
            )
        axes = example_axes(graph, other)
        sites, products = _find(graph, depends, axes)
        return cls(problem, graph, sites, products, depends, examples)

    def __call__(self, progress: bool = False) -> Iterator[Seen]:
        """Every site's gates on every batch."""
        size = self.graph.batch_size
        number = -(-self.examples // size)
        bar = tqdm(self.problem.padded_batches(size), total=number, disable=not progress, desc="gates")
        for k, (batch, count) in enumerate(bar):
            with torch.no_grad(), seeded(k, batch.device), sdpa_kernel(SDPBackend.MATH):
                yield from self._run(batch, count, k * size)

    def _run(self, batch: Tensor, count: int, start: int) -> Iterator[Seen]:
        at = {site.node: site for site in self.sites}
        known: dict[Node, Any] = {}
        last_use = {used: node for node in self.graph.nodes for used in node.all_input_nodes}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                known[node] = batch if node.name == self.graph.input else self.graph.constants.get(node.name)
            elif node.op == "call_function":
                operation = _evaluate(node, known)
                known[node] = operation.result
                if node in at:
                    gates = at[node].reader.gates(operation)
                    yield Seen(at[node], start, by_example(gates, at[node].axis, len(batch))[:count], operation)
                for used in node.all_input_nodes:  # nobody asks for it again
                    if last_use[used] is node:
                        known.pop(used, None)


def _evaluate(node: Node, known: dict[Node, Any]) -> Operation:
    arguments = fill(bind(node.target, node.args, dict(node.kwargs)), known)
    return Operation(node.target, arguments, invoke(node.target, arguments))


def by_example(gates: Tensor, axis: int, examples: int) -> Tensor:
    """(examples, units): an axis that merges examples with something else has the examples first."""
    return gates.movedim(axis, 0).reshape(examples, -1)


def _dependent(graph: Graph) -> frozenset[Node]:
    reached: set[Node] = set()
    for node in graph.nodes:
        if node.name == graph.input or any(used in reached for used in node.all_input_nodes):
            reached.add(node)
    return frozenset(reached)


def example_axes(graph: Graph, other: Graph) -> dict[Node, int]:
    """The axis of each result that changes with the batch size."""
    if [n.target for n in graph.calls()] != [n.target for n in other.calls()]:
        raise ValueError(
            "the model runs other operators at another batch size, so which axis holds the examples is not known; "
            "write it so that its operators do not depend on the batch size"
        )
    axes = {}
    for here, there in zip(graph.calls(), other.calls(), strict=True):
        shapes = zip(_shape(here), _shape(there), strict=False)
        changed = [k for k, (a, b) in enumerate(shapes) if a != b]
        if changed:
            axes[here] = changed[0]
    return axes


def first_axes(graph: Graph) -> dict[Node, int]:
    """The first axis of each result that has room for the examples there: where no other batch size tells."""
    lengths = {node: _shape(node)[:1] for node in graph.calls()}
    return {node: 0 for node, length in lengths.items() if length and length[0] % graph.batch_size == 0}


def _shape(node: Node) -> tuple[int, ...]:
    leaves = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
    return tuple(leaves[0].shape) if leaves else ()


def _find(graph: Graph, depends: frozenset[Node], axes: dict[Node, int]) -> tuple[tuple[Site, ...], tuple[str, ...]]:
    sites, products, used = [], [], Counter[str]()
    for node in graph.calls():
        if node not in depends or node not in axes:
            continue
        found = reader_of(node.target)
        if found is not None and _steered(node, depends):
            kind = "attention" if found.kind == "softmax" and _multiplies(node) else found.kind
            path = module_path(node) or node.name
            used[path] += 1
            name = path if used[path] == 1 else f"{path}:{used[path]}"
            shaped = node.args[0] if node.target in MAXIMA else node  # their gates have the shape of the input
            axis = axes.get(shaped, 0) if isinstance(shaped, Node) else 0
            sites.append(Site(name, kind, _operator(node), node, found, axis))
        elif node.target is aten.mul.Tensor and sum(a in depends for a in node.args if isinstance(a, Node)) == 2:
            products.append(module_path(node) or node.name)
    return tuple(sites), tuple(products)


def _steered(node: Node, depends: frozenset[Node]) -> bool:
    """A selection by a fixed mask is no gate."""
    return node.target is not aten.where.self or node.args[0] in depends


def _multiplies(node: Node) -> bool:
    """Whether softmax weights go on to be the left factor of a matrix product."""
    for user in node.users:
        if user.target in PRODUCTS and user.args[0] is node:
            return True
        if user.target in PASSED and _multiplies(user):
            return True
    return False


def _operator(node: Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0].strip("_")
