"""The coupling there is to remove: squared cosines between rows of the matrix that feeds a layer.

Pairs are (pairs, 2) numbers of units, in the order of the layer's values without their examples axis.
"""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from capalloc._energy.affine_stretch import AffineStretch
from capalloc._energy.carriers import find
from capalloc._energy.mixed_inputs import MOST_ENTRIES
from capalloc._graph.capture import Graph
from capalloc._model.input_metric import InputMetric
from capalloc._operators.calls import arguments_of, per_axis
from capalloc._operators.records import record

#: Draws of a batch of pairs before settling for fewer than asked for.
PAIR_DRAWS = 64
#: Inputs above which a first layer is not run once along each.
MOST_DIRECTIONS = 2**14


def all_pairs(units: int) -> Tensor:
    return torch.combinations(torch.arange(units), 2)


def some_pairs(units: int, number: int, generator: torch.Generator) -> Tensor:
    """Draw pairs of distinct units, with replacement; all of them if there are no more than `number`."""
    if units * (units - 1) // 2 <= number:
        return all_pairs(units)
    first = torch.randint(units, (number,), generator=generator)
    second = torch.randint(units - 1, (number,), generator=generator)
    return torch.stack([first, second + (second >= first)], 1)


@dataclass(frozen=True)
class DenseRows:
    """z (..., outputs) = x W': units of other positions read other inputs."""

    weight: Tensor  # (outputs, inputs)

    def pairs(self, units: int, number: int, generator: torch.Generator) -> Tensor:
        """Draw pairs at one position; all of them if there are no more than `number`."""
        outputs = len(self.weight)
        positions = units // outputs
        if positions * outputs * (outputs - 1) // 2 <= number:
            here = all_pairs(outputs)
            return (here + outputs * torch.arange(positions)[:, None, None]).reshape(-1, 2)
        if outputs < 2:
            return torch.empty(0, 2, dtype=torch.long)
        at = torch.randint(positions, (number, 1), generator=generator)
        first = torch.randint(outputs, (number,), generator=generator)
        second = (first + 1 + torch.randint(outputs - 1, (number,), generator=generator)) % outputs
        return at * outputs + torch.stack([first, second], 1)

    def squared_cosines(self, pairs: Tensor) -> Tensor:
        """(pairs,), 0 for units at different positions."""
        outputs = len(self.weight)
        rows = _directions(self.weight)
        cosines = (rows[pairs[:, 0] % outputs] * rows[pairs[:, 1] % outputs]).sum(1)
        return torch.where(pairs[:, 0] // outputs == pairs[:, 1] // outputs, cosines.square(), 0)


@dataclass(frozen=True)
class ConvolutionRows:
    """z (channels, *positions): rows are kernels laid out around a position; borders are not cut off."""

    weight: Tensor  # (outputs, inputs per group, *kernel)
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    positions: tuple[int, ...]

    def pairs(self, units: int, number: int, generator: torch.Generator) -> Tensor:
        """Pairs whose kernels overlap: uniform over them, fewer than `number` only where they are rare."""
        if units * (units - 1) // 2 <= number:
            return all_pairs(units)
        reach = [d * (k - 1) // s for d, k, s in zip(self.dilation, self.weight.shape[2:], self.stride, strict=True)]
        per_group = len(self.weight) // self.groups
        draw = lambda high, rows: torch.randint(high, (rows,), generator=generator)  # noqa: E731
        kept: list[Tensor] = []
        for _ in range(PAIR_DRAWS):
            channel, partner = draw(len(self.weight), number), draw(per_group, number)
            partner = channel // per_group * per_group + partner
            first, second, fits = channel, partner, torch.ones(number, dtype=torch.bool)
            for n, r in zip(self.positions, reach, strict=True):
                place, step = draw(n, number), draw(2 * r + 1, number) - r
                fits &= (place + step >= 0) & (place + step < n)
                first, second = first * n + place, second * n + place + step
            fits &= first != second
            kept.append(torch.stack([first, second], 1)[fits])
            if sum(map(len, kept)) >= number:
                break
        return torch.cat(kept)[:number]

    def squared_cosines(self, pairs: Tensor) -> Tensor:
        """(pairs,), 0 where kernels do not meet on the same inputs."""
        area = math.prod(self.positions)
        channels, places = pairs // area, torch.unravel_index(pairs % area, self.positions)
        per_group = len(self.weight) // self.groups
        rows = _directions(self.weight)
        cosines = torch.zeros(len(pairs), dtype=rows.dtype)
        # The inputs of kernel entry t of unit p are s p + d t: they meet where t - t' = s (p' - p) / d.
        offset = torch.stack([place[:, 1] - place[:, 0] for place in places], 1) * torch.tensor(self.stride)
        dilation = torch.tensor(self.dilation)
        lags = offset.div(dilation, rounding_mode="floor")
        meets = (lags * dilation == offset).all(1) & (channels[:, 0] // per_group == channels[:, 1] // per_group)
        kernel = self.weight.shape[2:]
        for lag in itertools.product(*(range(1 - k, k) for k in kernel)):
            here = (meets & (lags == torch.tensor(lag)).all(1)).nonzero()[:, 0]
            if not len(here):
                continue
            own = tuple(slice(max(0, g), k + min(0, g)) for g, k in zip(lag, kernel, strict=True))
            other = tuple(slice(max(0, -g), k + min(0, -g)) for g, k in zip(lag, kernel, strict=True))
            for some in here.split(1024):
                left = rows[channels[some, 0]][(slice(None), slice(None), *own)].flatten(1)
                right = rows[channels[some, 1]][(slice(None), slice(None), *other)].flatten(1)
                cosines[some] = (left * right).sum(1)
        return cosines.square()


Rows = DenseRows | ConvolutionRows


@dataclass(frozen=True)
class FirstLayers:
    """Layers that are affine in the inputs: their rows in the metric, as steps along z_i of x = mu + A z find them."""

    stretch: AffineStretch
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, graph: Graph, metric: InputMetric) -> FirstLayers:
        """Find them in a graph."""
        assert metric.center is not None
        return cls(AffineStretch.of(graph, find(graph), metric, metric.center))

    def squared_cosines(self, gate: Node, pairs: Tensor) -> Tensor | None:
        """(pairs,); None for a gate that reads no such layer, or where there are too many steps to take."""
        source = gate.args[0]
        if not isinstance(source, Node) or source not in self.stretch.values:
            return None
        inputs, entries = self.stretch.metric.num_inputs, self.stretch.values[source].numel()
        if inputs > MOST_DIRECTIONS or inputs * entries > MOST_ENTRIES:
            self.notes.append(
                f"{inputs} inputs are too many to weigh the pairs of a first layer by the metric: its weights alone "
                "weigh them"
            )
            return None
        rows = _directions(self.stretch.columns(source).flatten(1).T.to("cpu", torch.float64))
        parts = ((rows[some[:, 0]] * rows[some[:, 1]]).sum(1) for some in pairs.split(1024))
        return torch.cat(list(parts)).square()


def feeding_rows(graph: Graph, node: Node, depends: frozenset[Node]) -> Rows | None:
    """Find the rows of the linear map that an activation reads directly, None where there is not one alone."""
    source = node.args[0]
    while isinstance(source, Node) and source.op == "call_function":
        kind = record(source.target).kind
        if kind in ("dense", "convolution"):
            weight, given = _weight(graph, source, depends), arguments_of(source)
            transposed = given.get("transposed", "output_padding" in given)
            if weight is None or kind == "dense":
                return None if weight is None else DenseRows(weight)
            return None if transposed else _convolution(source, weight, given)
        source = _through(source, depends)
    return None


def _through(node: Node, depends: frozenset[Node]) -> Any:
    """Find the signal that `node` passes on without turning rows, None if it does something else."""
    known = record(node.target)
    steady = known.kind == "normalisation" and known.steady(arguments_of(node))
    if known.kind == "copy" or steady or node.target is operator.getitem:
        return node.args[0]
    if known.kind in ("sum", "product", "quotient"):
        signals = [a for a in node.args if isinstance(a, Node) and a in depends]
        same_shape = [a for a in signals if a.meta["val"].shape == node.meta["val"].shape]
        return same_shape[0] if len(signals) == 1 and same_shape else None
    return None


def _convolution(node: Node, weight: Tensor, given: dict[str, Any]) -> ConvolutionRows:
    stride, dilation = (tuple(per_axis(given[name], weight.ndim - 2)) for name in ("stride", "dilation"))
    return ConvolutionRows(weight, stride, dilation, int(given["groups"]), tuple(node.meta["val"].shape[2:]))


def _weight(graph: Graph, node: Node, depends: frozenset[Node]) -> Tensor | None:
    source = node.args[1]
    if not isinstance(source, Node) or source in depends:
        return None
    value = graph.constants.get(source.name)
    return value.detach().to("cpu", torch.float64) if isinstance(value, Tensor) else None


def _directions(weight: Tensor) -> Tensor:
    """Rows of unit length; a row of zeros has no direction and couples with nothing."""
    norms = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
    return torch.where(norms > 0, weight / norms, 0)
