"""Sums over examples: the one place where the constraints of all examples meet.

A sum is a pass over batches (`_measure.examples`), a plain value that rank 0 sends to the others; parameter vectors
are in the units and the precision of products. Sums are undivided; `ExampleSums` divides them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from capalloc._linalg.fold import Total
from capalloc._linalg.saturation import BlockMoments
from capalloc._measure.examples import Batch, Examples
from capalloc._runtime.steps import Steps

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class NoiseSum(Total):
    """C' xi for `count` draws of standard normal rows, (k, params)."""

    number: int
    count: int
    precision: torch.dtype = torch.float64

    def begin(self, source: Examples) -> Tensors:
        return (torch.zeros(self.count, source.num_params, dtype=self.precision, device=source.x.device),)

    def advance(self, state: Tensors, block: Batch) -> Tensors:
        for part, into in block.split(block.normal_rows(self.count, 0, self.number), state[0]):
            block.add_adjoint(into, part)
        return state


@dataclass(frozen=True)
class ReadSum(Total):
    """The squares of C w, summed by slot, (k, s), and the moments of every example's rows, (2, examples, s)."""

    w: Tensor

    def begin(self, source: Examples) -> Tensors:
        moments = self.w.new_zeros(2, source.num_examples, source.num_slots, dtype=torch.float64)
        return self.w.new_zeros(len(self.w), source.num_slots, dtype=torch.float64), moments

    def advance(self, state: Tensors, block: Batch) -> Tensors:
        slots, moments = state
        parts = []
        for part, seen in block.split(self.w, slots):
            parts.append(block.apply(part))
            seen += parts[-1].square().sum((1, 2)).double()
        found = BlockMoments.of(parts[0] if len(parts) == 1 else torch.cat(parts), block.source.num_outputs)
        moments[:, block.place] = torch.stack([found.first, found.second])
        return state


@dataclass(frozen=True)
class ProductSum(Total):
    """G w, (k, params)."""

    w: Tensor

    def begin(self, source: Examples) -> Tensors:
        return (torch.zeros_like(self.w, dtype=torch.float64),)

    def advance(self, state: Tensors, block: Batch) -> Tensors:
        for part, into in block.split(self.w, state[0]):
            block.add_adjoint(into, block.apply(part))
        return state


@dataclass(frozen=True)
class InnerSum(Total):
    """G w, and for every slot the inner products of the rows of C w, (s, k, k), and of those of other vectors."""

    w: Tensor
    others: Tensors

    def begin(self, source: Examples) -> Tensors:
        double = partial(self.w.new_zeros, dtype=torch.float64)
        inner = [double(source.num_slots, len(v), len(v)) for v in (self.w, *self.others)]
        return (double(self.w.shape), *inner)

    def advance(self, state: Tensors, block: Batch) -> Tensors:
        product, inner, *others = state
        if len(self.w):
            rows = []
            for part, into in block.split(self.w, product):
                rows.append(block.apply(part))
                block.add_adjoint(into, rows[-1])
            add_inner(inner, rows)
        for v, into in zip(self.others, others, strict=True):
            if len(v):
                add_inner(into, (block.apply(part) for (part,) in block.split(v)))
        return state


def add_inner(inner: Tensor, rows: Iterable[Tensor]) -> None:
    """Add the inner products of rows by slot."""
    by_slot = torch.cat([*rows]).permute(3, 0, 1, 2).flatten(2)
    inner += (by_slot @ by_slot.mT).double()


@dataclass(frozen=True)
class PullSum(Total):
    """C' rows: (k, rows) of all processes to (k, params)."""

    rows: Tensor

    def begin(self, source: Examples) -> Tensors:
        return (self.rows.new_zeros(len(self.rows), source.num_params),)

    def advance(self, state: Tensors, block: Batch) -> Tensors:
        own = block.source.by_example(self.rows)[:, :, block.place].to(block.x.dtype)
        for part, into in block.split(own, state[0]):
            block.add_adjoint(into, part)
        return state


@dataclass(frozen=True)
class PushSum(Total):
    """C w: (k, params) to (k, rows) of all processes."""

    w: Tensor

    def begin(self, source: Examples) -> Tensors:
        return (self.w.new_zeros(len(self.w), source.num_rows, dtype=torch.float64),)

    def advance(self, state: Tensors, block: Batch) -> Tensors:
        for part, into in block.split(self.w, block.source.by_example(state[0])):
            into[:, :, block.place] = block.apply(part).double()
        return state


@dataclass(frozen=True)
class ExampleSums:
    """Products with C and G = C'C of the examples of all processes; rank 0 asks for them."""

    examples: Examples
    steps: Steps

    def noise(self, number: int, count: int, precision: torch.dtype = torch.float64) -> Tensor:
        """Return C' xi for `count` draws of standard normal rows: N(0, G) each."""
        return self._total(NoiseSum(number, count, precision)).div_(math.sqrt(self.examples.num_examples))

    def read(self, w: Tensor) -> tuple[Tensor, BlockMoments]:
        """Return the squares of C w, summed by slot, (k, s), and the moments of every example's rows."""
        count = self.examples.num_examples
        seen, (first, second) = self.steps.gather(ReadSum(self.examples.in_units(w)))
        return seen / count, BlockMoments(first / count, second / count**2, self.examples.num_outputs)

    def gram(self, w: Tensor) -> Tensor:
        """Return G w, (k, params)."""
        return self._total(ProductSum(self.examples.in_units(w))).div_(self.examples.num_examples)

    def inner(self, w: Tensor, *others: Tensor) -> Iterator[Tensor]:
        """Yield G w, and by slot the inner products of the rows of C w and of those of other vectors."""
        in_units = self.examples.in_units
        for total in self.steps.gather(InnerSum(in_units(w), tuple(in_units(v) for v in others))):
            yield total.div_(self.examples.num_examples)

    def pull(self, rows: Tensor) -> Tensor:
        """Return C' rows: (k, rows) to (k, params)."""
        return self._total(PullSum(rows)).div_(math.sqrt(self.examples.num_examples))

    def push(self, w: Tensor) -> Tensor:
        """Return C w: (k, params) to (k, rows)."""
        return self._total(PushSum(self.examples.in_units(w))).div_(math.sqrt(self.examples.num_examples))

    def kernel(self, y: Tensor) -> Tensor:
        """Return K y = C C' y, (k, rows)."""
        return self.push(self.pull(y))

    def _total(self, work: Total) -> Tensor:
        (total,) = self.steps.gather(work)
        return total
