"""Blocks read off a model: the law of every block's step and its rate, on the way from the inputs to the last grid.

Index convention: signals on a grid are (examples, channels, *positions).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from capalloc._energy.batches import Batches
from capalloc._energy.carriers import Products
from capalloc._energy.paths import adjoint
from capalloc._energy.rates import NotedEnergies
from capalloc._energy.residual import ResidualBlock, Trails
from capalloc._energy.sweep import pull
from capalloc._energy.trace import Watch
from capalloc._model.problem import ModelLike, OutputSelection, prepare
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc.depth_limit.block import WalkBlock
from capalloc.depth_limit.step_law import StepLaw

Place = tuple[int, ...]


@checked
@undisturbed()
def read(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    *,
    products: Products | None = None,
) -> dict[str, WalkBlock]:
    """The blocks of a convolutional model, by name, inputs first: what `chain`, `jump` and `diffusion` take.

    A residual block gets its rate, $lambda = branch energy / skip energy$, and the law of its branch; a layer that
    every path crosses gets rate inf and its law (docs/theory.md, section 5). Laws are those of the walk from the middle
    of a grid, its channels weighted as the walk comes to them, in pixels of the inputs: a stride multiplies the steps
    above it. Where a layer changes the size of the grid, the mean of its step cannot be told from the shift of the grid
    and is rounded away. The walk starts at the last signal with a grid, before pooling or flattening. Where no path
    crosses the middle on these examples, the nearest position that one does cross stands for it; layers and blocks that
    nothing passes are left out.

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2, whose
            signals are (examples, channels, *positions).
        inputs: examples (examples, channels, *positions), or an iterable of such batches; the first batch is walked.
        outputs: where paths end, as in `measure`.
        products: as in `propagate`.

    Raises:
        ValueError: inputs without positions, or a model without a layer on their grid.
        UnsupportedOperatorError, TypeError: as `propagate`.

    """
    problem = prepare(model, inputs, outputs, traced=True)
    axes = len(problem.input_shape) - 1
    if not 1 <= axes <= 3:
        raise ValueError(
            f"inputs must be (examples, channels, *positions) with 1 to 3 axes of positions, got {axes} of them"
        )
    batches = Batches.of(problem, "data", "auto", products=products)
    trails = Trails.of(batches.graph, batches.carriers)
    stations, blocks = _stations(trails, axes)
    nodes = frozenset({*stations, *(block.sum for block in blocks.values())})
    program, seed = next(iter(replace(batches, watch=Watch(nodes))()))
    walks = _Walks(NotedEnergies.of(program, seed), axes)
    found = list(walks.laws(trails, stations, blocks))
    if not found:
        raise ValueError("no layer of the model keeps the grid of its inputs: (examples, channels, *positions)")
    program.forget()
    return dict(_in_pixels(found))


Segment = tuple[str, WalkBlock, Place]  # its law in pixels of the grid below, and its stride


def _in_pixels(found: list[Segment]) -> Iterator[tuple[str, WalkBlock]]:
    """Steps times the strides below them."""
    below = (1,) * len(found[0][2])
    for name, block, stride in found:
        yield name, WalkBlock(block.law.dilated(below), float(block.rate))
        below = tuple(a * b for a, b in zip(below, stride, strict=True))


def _stations(trails: Trails, axes: int) -> tuple[list[Node], dict[Node, ResidualBlock]]:
    """Nodes of the trunk between which the walk is told apart, and the blocks that end at some of them."""
    trunk = [node for node in trails.trunk() if _positions(node, axes)]
    blocks = {b.sum: b for b in trails.blocks() if b.sum in trunk and b.source in trunk}
    inside = {node for b in blocks.values() for node in trunk if _within(trails, node, b)}
    layers = [n for n in trunk if trails.weights(n) and n not in inside]
    sources = [block.source for block in blocks.values()]
    kept = {trunk[0], *layers, *blocks, *sources}
    return [node for node in trunk if node in kept], blocks


def _within(trails: Trails, node: Node, block: ResidualBlock) -> bool:
    return trails.order[block.source] < trails.order[node] < trails.order[block.sum]


def _positions(node: Node, axes: int) -> Place:
    """Shape of a signal's grid; empty for one without."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (tuple, list)) else value
    shape = tuple(value.shape) if isinstance(value, Tensor) else ()
    return shape[2:] if len(shape) == axes + 2 and math.prod(shape[2:]) > 1 else ()


@dataclass(frozen=True)
class _Walks:
    """Walks from one position of one station's grid, near its middle, to the station below."""

    flow: NotedEnergies
    axes: int

    def laws(self, trails: Trails, stations: list[Node], blocks: dict[Node, ResidualBlock]) -> Iterator[Segment]:
        """Laws of the stretches between two stations, inputs first; those that pass nothing are left out."""
        for below, above in pairwise(stations):
            block = blocks.get(above)
            start, bottom = self._start(above, block), self.flow.slot(below)
            size, onto = _positions(above, self.axes), _positions(below, self.axes)
            at = start.nearest([n // 2 for n in size]) if start is not None else None
            if start is None or at is None or bottom not in self.flow.up:
                continue
            law = self._law(start, at, bottom)
            stride, origin = (1,) * self.axes, at
            if size != onto:
                origin = tuple(round(m) for m in _mean(law))
                stride = tuple(self._stride(start, at, axis, bottom) for axis in range(self.axes))
            if block is None and size == onto and bool(law[at] == 1):  # it moves nowhere
                continue
            skip, branch = self.flow.parts(block) if block else (-math.inf, 0.0)
            name = block.name if block else trails.last_layer(below, above) or above.name
            yield name, WalkBlock(_cropped(law, origin), 2 ** (branch - skip)), stride

    def _start(self, above: Node, block: ResidualBlock | None) -> _Start | None:
        """Adjoints at a station, in a block's branch if there is one."""
        slot = self.flow.slot(above)
        if slot not in self.flow.down:
            return None
        adjoint_there = self.flow.down[slot]
        if block is not None:
            step = self.flow.sum(block)
            branch = step.args[0 if block.sum.args[0] is block.branch else 1]
            slot, adjoint_there = branch, pull(self.flow.program, step, adjoint_there, [branch])[0]
        return _Start(slot, adjoint_there, (self.flow.up[slot] * adjoint_there).sum((0, 1)) > 0)

    def _stride(self, start: _Start, at: Place, axis: int, bottom: int) -> int:
        """The move of the mean with the position, between the quarters of the grid."""
        n = start.crossed.shape[axis]
        quarters = [start.nearest([*at[:axis], place, *at[axis + 1 :]]) for place in (n // 4, 3 * n // 4)]
        first, last = (q for q in quarters if q is not None)
        if first[axis] == last[axis]:
            return 1
        moved = _mean(self._law(start, last, bottom))[axis] - _mean(self._law(start, first, bottom))[axis]
        return max(1, round(moved / (last[axis] - first[axis])))

    def _law(self, start: _Start, position: Place, bottom: int) -> Tensor:
        """The law at the station below of the walk from a position."""
        seed = torch.zeros_like(start.adjoint)
        at: tuple[Any, ...] = (slice(None), slice(None), *position)
        seed[at] = start.adjoint[at]
        arrived = adjoint(self.flow.program, {start.slot: seed}, {bottom})[bottom]
        law = (self.flow.up[bottom] * arrived).sum((0, 1)).double().cpu()
        return law / law.sum()


@dataclass(frozen=True)
class _Start:
    """The signal in which walks start."""

    slot: int
    adjoint: Tensor
    crossed: Tensor  # positions that paths cross, on these examples

    def nearest(self, place: list[int]) -> Place | None:
        """The crossed position nearest to a place."""
        found = self.crossed.nonzero()
        if not len(found):
            return None
        away = (found - torch.tensor(place, device=found.device)).square().sum(1)
        return tuple(found[int(away.argmin())].tolist())


def _mean(law: Tensor) -> list[float]:
    """Mean position along every axis."""
    sums = [law.movedim(k, 0).flatten(1).sum(1) if law.ndim > 1 else law for k in range(law.ndim)]
    return [float(s @ torch.arange(len(s), dtype=s.dtype)) for s in sums]


def _cropped(law: Tensor, origin: Place) -> StepLaw:
    """The law about its origin, without the rows and columns where it is 0."""
    seen = law.nonzero()
    first, last = (torch.tensor(origin).minimum(seen.amin(0)), torch.tensor(origin).maximum(seen.amax(0)))
    kept = law[tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))]
    return StepLaw(kept.numpy(), tuple(int(o - a) for o, a in zip(origin, first, strict=True)))
