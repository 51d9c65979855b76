"""Inputs that can change one output position at all: through paths, gates and statistics (docs/theory.md, section 6).

Masks walk a captured graph backwards, call by call. An activation or a comparison passes a mask to the same entries, a
maximum to its window. What is smooth in the arguments that matter passes it by its own derivative at random values,
whose zeros are structural with probability one; anything else is taken to read all that its arguments hold.

Index convention: an output is (examples, *output axes), an input (examples, *input axes).
"""

from __future__ import annotations

import operator
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from capalloc._energy.carriers import Carriers
from capalloc._energy.generic_values import double, evaluated, generic, is_floating, reached_from, same_places
from capalloc._energy.rules.max_pooling import WHERE, window_sums
from capalloc._energy.support import at_position
from capalloc._graph.capture import Graph
from capalloc._graph.interpret import Values, fill
from capalloc._graph.structure import reached
from capalloc._operators.calls import Operation, arguments_of, invoke
from capalloc._operators.records import STEP_FUNCTIONS, named, record
from capalloc.results.receptive_field import Index

Masks = list[Tensor | None]  # one for each tensor of a result
#: Kinds whose derivative at random values vanishes nowhere but where it always does.
SMOOTH_KINDS = frozenset(
    {"softmax", "attention", "normalisation", "selection", "product", "quotient", "contraction", "sum", "average"}
    | {"movement", "piece", "dense", "convolution"}
)
#: Operators without a path that have a dependence, and those whose reads another signal chooses.
PATHLESS = named(f"detach bernoulli bernoulli.p {STEP_FUNCTIONS}")
STEERED_READS = named("grid_sampler grid_sampler_2d grid_sampler_3d")
#: Relative size below which a gradient is rounding where the model has complex numbers.
FOURIER_ROUNDING = 1e-12
#: Points at which an operator without a declared kind has one derivative, if it is affine.
AFFINE_POINTS = 8


@dataclass
class Influence:
    """The inputs that can change the position, and how far that is known."""

    seen: Tensor  # (*inputs)
    unknown: dict[str, None] = field(default_factory=dict)  # operators that are taken to read everything
    chosen: bool = False  # whether examples decide which entries are read


def gates_add_nothing(graph: Graph, carriers: Carriers) -> bool:
    """Tell whether all that depends on the inputs, on the way to the output, carries paths without a gate of data."""
    live = reached_from(graph, (graph.input,)) & reached({graph.output}, lambda node: node.all_input_nodes)
    return not carriers.data_gates and live <= carriers.carrying


def influence(graph: Graph, position: Index, like: Tensor, generator: torch.Generator) -> Influence:
    """Sweep masks from an output position to the inputs.

    Args:
        graph: a captured graph.
        position: an output position.
        like: a batch with the shape of the inputs, (examples, *inputs).
        generator: draws the inputs and parameters that derivatives are taken at.

    """
    values = generic(graph, like, generator)
    sweep = _Sweep(graph, values, reached_from(graph, (graph.input,)), generator)
    waiting: dict[Node, Masks] = {graph.output: [at_position(position, values[graph.output]) > 0]}
    for node in reversed(tuple(graph.calls())):
        masks = waiting.pop(node, None)
        if masks is None or node not in sweep.live:
            continue
        for used, found in sweep.pull(node, masks).items():
            before = waiting.get(used, [None] * len(found))
            waiting[used] = [_either(a, b) for a, b in zip(before, found, strict=True)]
    (seen,) = next((m for node, m in waiting.items() if node.name == graph.input), (None,))
    sweep.found.seen = (torch.zeros_like(like, dtype=torch.bool) if seen is None else seen).any(0).cpu()
    return sweep.found


def gradient_reach(graph: Graph, position: Index, like: Tensor, generator: torch.Generator) -> Tensor:
    """Find the inputs with a gradient at one draw of weights and inputs, in float64: a lower bound, (*inputs)."""
    with torch.enable_grad():
        values = evaluated(graph, like, generator, learn=True)
        x = next(value for node, value in values.items() if node.name == graph.input)
        y = values[graph.output]
        weights = at_position(position, y) * torch.randn(y.shape, generator=generator).to(y)
        try:
            (slope,) = torch.autograd.grad(y, x, weights, materialize_grads=True)
        except RuntimeError:  # of an operator without a derivative: nothing is known to be reached
            return torch.zeros_like(like[0], dtype=torch.bool, device="cpu")
    spread = any(isinstance(value, Tensor) and value.is_complex() for value in values.values())  # Fourier's rounding
    least = FOURIER_ROUNDING * float(slope.abs().max()) if spread else 0.0
    reached: Tensor = (slope.abs() > least).any(0).cpu()
    return reached


@dataclass
class _Sweep:
    graph: Graph
    values: Values
    live: set[Node]  # depend on the inputs
    generator: torch.Generator
    found: Influence = field(default_factory=lambda: Influence(torch.empty(0)))

    def pull(self, node: Node, masks: Masks) -> dict[Node, Masks]:
        """Give masks of the arguments of a call that depend on the inputs."""
        read = [used for used in dict.fromkeys(node.all_input_nodes) if used in self.live]
        wanted = [used for used in read if not isinstance(self.values[used], (int, float))]  # sizes have no places
        if node.target is operator.getitem:
            size = len(pytree.tree_leaves(self.values[wanted[0]]))
            return {wanted[0]: [masks[0] if k == node.args[1] else None for k in range(size)]}
        if record(node.target).kind == "constant" and node.target not in PATHLESS:
            return {}
        rule = self._rule(node, wanted)
        pulled = None if rule is None else rule(node, masks, wanted)
        if pulled is None:
            self.found.unknown[str(node.target)] = None
            pulled = self._everything(node, masks, wanted)
        return pulled

    def _rule(self, node: Node, wanted: list[Node]) -> Callable[..., dict[Node, Masks] | None] | None:
        kind, given = record(node.target).kind, arguments_of(node)
        moved = _nodes(next(iter(given.values()), None)) if kind in ("movement", "piece") else []
        discrete = [n for n in wanted if not is_floating(self.values[n]) and n not in moved]
        if (same_places(node) and (discrete or kind not in SMOOTH_KINDS)) or kind in ("copy", "constant"):
            return self._same_places
        if node.target is torch.ops.aten.one_hot.default:
            self.found.chosen = True
            return self._by_class
        if discrete or (node.target in STEERED_READS and given["grid"] in wanted):
            self.found.chosen = True
            return self._everything
        if node.target in WHERE:
            return self._window
        running = kind == "statistic" and [self.values[node].shape] == [self.values[n].shape for n in wanted]
        if kind in ("pooling", "statistic") and not running:
            return self._window
        if running or kind in SMOOTH_KINDS or self._is_affine(node, wanted):
            return self._smooth
        return None

    def _same_places(self, node: Node, masks: Masks, wanted: list[Node]) -> dict[Node, Masks] | None:
        (mask,) = masks
        assert mask is not None
        shapes = {n: self.values[n].shape for n in wanted}
        try:
            return {n: [mask.double().sum_to_size(shape) > 0] for n, shape in shapes.items()}
        except RuntimeError:  # another shape
            return None

    def _by_class(self, node: Node, masks: Masks, wanted: list[Node]) -> dict[Node, Masks]:
        (mask,) = masks
        assert mask is not None
        return {n: [mask.any(-1)] for n in wanted}

    def _everything(self, node: Node, masks: Masks, wanted: list[Node]) -> dict[Node, Masks]:
        return {n: [torch.ones_like(v, dtype=torch.bool) for v in pytree.tree_leaves(self.values[n])] for n in wanted}

    def _window(self, node: Node, masks: Masks, wanted: list[Node]) -> dict[Node, Masks] | None:
        over = window_sums(Operation(node.target, fill(arguments_of(node), self.values), self.values[node]))
        if over is None or len(wanted) != 1:
            return None
        either = torch.stack([mask for mask in masks if mask is not None]).any(0)
        (x,) = self._leaves(wanted).values()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(over(x), x, either.to(x.dtype))
        return {wanted[0]: [found != 0]}

    def _smooth(self, node: Node, masks: Masks, wanted: list[Node]) -> dict[Node, Masks] | None:
        found = self._gradients(node, self._leaves(wanted), masks)
        return None if found is None else {n: [g != 0] for n, g in zip(wanted, found, strict=True)}

    def _gradients(self, node: Node, leaves: Mapping[Node, Tensor], masks: Masks) -> tuple[Tensor, ...] | None:
        """Pull random cotangents on the masks back through a call; None where it has no derivative."""
        try:
            with torch.enable_grad():
                arguments = fill(arguments_of(node), ChainMap(leaves, self.values))  # type: ignore[arg-type]
                result = pytree.tree_leaves(invoke(node.target, pytree.tree_map(double, arguments)))
            marked = [(y, mask) for y, mask in zip(result, masks, strict=True) if mask is not None]
            if not any(y.requires_grad for y, _ in marked):  # an index, a count: no derivative says what it reads
                return None
            seeds = [mask * torch.rand(y.shape, generator=self.generator).add(1).to(y) for y, mask in marked]
            return torch.autograd.grad([y for y, _ in marked], [*leaves.values()], seeds, materialize_grads=True)
        except RuntimeError:
            return None

    def _is_affine(self, node: Node, wanted: list[Node]) -> bool:
        """Tell whether the derivative of a call is the same at random points."""
        if not all(isinstance(self.values[n], Tensor) for n in wanted):
            return False
        masks: Masks = [torch.ones_like(y, dtype=torch.bool) for y in pytree.tree_leaves(self.values[node])]
        state, first = self.generator.get_state(), None
        for k in range(AFFINE_POINTS):
            self.generator.set_state(state)  # the same cotangents
            shift = torch.Generator().manual_seed(k)
            leaves = {
                n: (torch.randn(x.shape, generator=shift).to(x) * 10.0 ** (k % 3)).requires_grad_()
                for n, x in self._leaves(wanted).items()
            }
            found = self._gradients(node, leaves, masks)
            if found is None:
                return False
            first = first or found
            if not all(torch.allclose(a, b, rtol=1e-9, atol=0) for a, b in zip(found, first, strict=True)):
                return False
        return True

    def _leaves(self, wanted: Iterable[Node]) -> dict[Node, Tensor]:
        values = ((n, self.values[n]) for n in wanted)
        return {n: (v if is_floating(v) else v.double()).detach().clone().requires_grad_() for n, v in values}


def _nodes(tree: Any) -> list[Node]:
    return [a for a in pytree.tree_leaves(tree) if isinstance(a, Node)]


def _either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a | b
