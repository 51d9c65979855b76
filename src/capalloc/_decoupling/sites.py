"""Gates of a captured graph, and their values batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from capalloc._energy.rules import read_gates
from capalloc._graph.capture import Graph, capture, module_path
from capalloc._graph.interpret import interpret, placeholders
from capalloc._model.problem import Problem, seeded
from capalloc._operators.calls import Operation, arguments_of, invoke
from capalloc._operators.records import record


@dataclass(frozen=True, eq=False)
class GateSite:
    """A gate of the network: an operator call of the graph, named after its module."""

    name: str
    kind: str
    operator: str
    node: Node
    axis: int  # of the examples in the result


@dataclass(frozen=True)
class SeenGates:
    """Gates of one site on some consecutive examples."""

    site: GateSite
    start: int  # number of the first example
    gates: Tensor  # (examples, units)
    operation: Operation


@dataclass(frozen=True)
class Gated:
    """A captured model with its gates in order of depth."""

    problem: Problem
    graph: Graph
    sites: tuple[GateSite, ...]
    notes: tuple[str, ...]  # on gates that none of the sites describes
    depends: frozenset[Node]  # nodes that the inputs reach
    examples: int

    @classmethod
    def of(cls, problem: Problem, batch_size: int) -> Gated:
        """Capture the model; a second time at another batch size, which shows where the examples axis is."""
        examples = problem.count()
        size = min(batch_size, examples)
        graph = capture(problem, size)
        depends = _dependent(graph)
        other = capture(problem, 3 if graph.batch_size == 2 else 2)
        if other.batch_size == graph.batch_size:
            raise ValueError(
                f"the program was exported for exactly {graph.batch_size} examples, which hides where the examples "
                "axis is; export it with dynamic_shapes that leave the first axis free"
            )
        axes = example_axes(graph, other)
        sites, notes = _find(graph, depends, axes)
        return cls(problem, graph, sites, notes, depends, examples)

    def __call__(self, progress: bool = False) -> Iterator[SeenGates]:
        """Give every site's gates on every batch."""
        size = self.graph.batch_size
        number = -(-self.examples // size)
        bar = tqdm(self.problem.padded_batches(size), total=number, disable=not progress, desc="gates")
        for k, (batch, count) in enumerate(bar):
            with torch.no_grad(), seeded(k, batch.device):
                yield from self._run(batch, count, k * size)

    def _run(self, batch: Tensor, count: int, start: int) -> Iterator[SeenGates]:
        at = {site.node: site for site in self.sites}
        seen: list[SeenGates] = []

        def call(node: Node, arguments: dict[str, Any]) -> Any:
            operation = Operation(node.target, arguments, invoke(node.target, arguments))
            if site := at.get(node):
                gates = by_example(read_gates(operation), site.axis, len(batch))[:count]
                seen.append(SeenGates(site, start, gates, operation))
            return operation.result

        for _ in interpret(self.graph, placeholders(self.graph, batch), call):
            while seen:
                yield seen.pop()


def by_example(gates: Tensor, axis: int, examples: int) -> Tensor:
    """Reshape gates to (examples, units): an axis that merges examples with something else has the examples first."""
    return gates.movedim(axis, 0).reshape(examples, -1)


def _dependent(graph: Graph) -> frozenset[Node]:
    reached: set[Node] = set()
    for node in graph.nodes:
        if node.name == graph.input or any(used in reached for used in node.all_input_nodes):
            reached.add(node)
    return frozenset(reached)


def example_axes(graph: Graph, other: Graph) -> dict[Node, int]:
    """Find the axis of each result that changes with the batch size."""
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
    """Find the first axis of each result that has room for the examples: no other batch size can tell."""
    lengths = {node: _shape(node)[:1] for node in graph.calls()}
    return {node: 0 for node, length in lengths.items() if length and length[0] % graph.batch_size == 0}


def _shape(node: Node) -> tuple[int, ...]:
    leaves = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
    return tuple(leaves[0].shape) if leaves else ()


def _find(
    graph: Graph, depends: frozenset[Node], axes: dict[Node, int]
) -> tuple[tuple[GateSite, ...], tuple[str, ...]]:
    sites, notes, used = [], [], Counter[str]()
    for node in graph.calls():
        if node not in depends or node not in axes:
            continue
        known, path = record(node.target), module_path(node) or node.name
        if known.gates is not None and (known.kind != "selection" or node.args[0] in depends):  # no fixed mask
            kind = "attention" if known.kind == "softmax" and _multiplies(node) else known.kind
            used[path] += 1
            name = path if used[path] == 1 else f"{path}:{used[path]}"
            sites.append(GateSite(name, kind, operator_name(node), node, axes[node]))
        elif known.gates is None and known.decouples:
            notes.append(f"{path}: {operator_name(node)}, whose gates are not read")
        elif known.kind == "product" and sum(a in depends for a in node.args if isinstance(a, Node)) == 2:
            notes.append(f"{path}: a product of two signals, whose gate is not known")
    return tuple(sites), tuple(notes)


def _multiplies(node: Node) -> bool:
    """Tell whether softmax weights go on to be the left factor of a matrix product."""
    for user in node.users:
        known = record(user.target)
        if known.kind == "contraction" and known.factors and arguments_of(user)[known.factors[0]] is node:
            return True
        if known.kind in ("copy", "movement") and _multiplies(user):
            return True
    return False


def operator_name(node: Node) -> str:
    """Give a node's operator without its package and overload."""
    return str(node.target).removeprefix("aten.").rsplit(".", 1)[0].strip("_")
