"""Sums over examples: the one place where the constraints of all examples meet.

With C the rows of all examples divided by the root of their number, G = C'C. Index convention: k vectors, rows are
(k, o, e, s) for outputs, examples and slots; parameter vectors are (k, params) in float64, whatever precision the
products run in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from capalloc._derivatives.products import BatchProducts, ConstraintOperator
from capalloc._model.problem import random_signs

#: Sums a tensor over the processes that share the examples; alone, the identity.
Reduce = Callable[[Tensor], Tensor]


def alone(total: Tensor) -> Tensor:
    """One process holds all examples."""
    return total


def silent(*_: object) -> None:
    """Nobody waits to be told which product comes next."""


@dataclass(frozen=True)
class Batch:
    """Some examples, the combinations of outputs that are constrained, and their place in the data."""

    index: int
    first: int  # place of its first example among those of all processes
    x: Tensor
    units: Tensor  # (o, e, outputs)


@dataclass(frozen=True)
class Products:
    """Products with C and G = C'C of all examples, and standard normal rows, repeatable by `seed`."""

    operator: ConstraintOperator
    x: Tensor
    batch_size: int
    vectors: int  # at a time
    num_outputs: int
    output_probes: int | None  # random signs over the outputs of each example; None for every output
    replay: Callable[[int], AbstractContextManager[None]]
    seed: int
    num_examples: int  # of all processes
    offset: int = 0  # examples of the processes before this one
    ready: tuple[BatchProducts, ...] = ()  # the constraints of every batch, where memory holds them
    reduce: Reduce = alone
    announce: Callable[..., object] = silent

    @property
    def num_params(self) -> int:
        """p."""
        return self.operator.problem.num_params

    @property
    def num_rows(self) -> int:
        """Of C."""
        return self.num_examples * self.rows_per_example

    @property
    def rows_per_example(self) -> int:
        """Outputs, or probes of them, times slots."""
        return (self.output_probes or self.num_outputs) * self.operator.space.num_slots

    def batches(self) -> Iterator[Batch]:
        """The examples of this process once over."""
        for index, x in enumerate(self.x.split(self.batch_size) if len(self.x) else ()):
            first = self.offset + index * self.batch_size
            yield Batch(index, first, x, self.units(first, x))

    def units(self, first: int, x: Tensor) -> Tensor:
        """Unit vectors, or each example's own signs: the same in every pass, scaled so that E sum uu' = 1."""
        m, q = self.num_outputs, self.output_probes
        if q is None:
            return torch.eye(m, dtype=x.dtype, device=x.device)[:, None].expand(m, len(x), m)
        signs = [random_signs((q, m), x, self.generator(2, first + k)) for k in range(len(x))]
        return torch.stack(signs, 1) / math.sqrt(q)

    def gram(self, w: Tensor) -> Tensor:
        """G w, (k, params)."""
        self.announce("gram", w)
        total = torch.zeros_like(w)
        for batch in self.batches():
            at = self._at(batch)
            for part, into in zip(w.split(self.vectors), total.split(self.vectors), strict=True):
                into += at.adjoint(at.apply(part.to(batch.x.dtype))).double()
        return self.reduce(total) / self.num_examples

    def noise(self, number: int, count: int) -> Tensor:
        """C' xi for `count` draws of standard normal rows: N(0, G) each."""
        self.announce("noise", number, count)
        total = torch.zeros(count, self.num_params, dtype=torch.float64, device=self.x.device)
        for batch in self.batches():
            xi = self.normal_rows(batch, count, 0, number)
            for part, one in zip(total.split(self.vectors), xi.split(self.vectors), strict=True):
                part += self.adjoint(batch, one)
        return self.reduce(total) / math.sqrt(self.num_examples)

    def inner(self, w: Tensor) -> Tensor:
        """For every slot the inner products of the rows of C w, (s, k, k)."""
        self.announce("inner", w)
        slots, k = self.operator.space.num_slots, len(w)
        total = torch.zeros(slots, k, k, dtype=torch.float64, device=w.device)
        for batch in self.batches():
            rows = torch.cat([self.apply(batch, part) for part in w.split(self.vectors)])
            by_slot = rows.permute(3, 0, 1, 2).flatten(2)
            total += (by_slot @ by_slot.mT).double()
        return self.reduce(total) / self.num_examples

    def pull(self, rows: Tensor) -> Tensor:
        """C' rows: (k, rows) of all processes to (k, params)."""
        self.announce("pull", rows)
        each = self._by_example(rows)
        total = torch.zeros(len(rows), self.num_params, dtype=torch.float64, device=rows.device)
        for batch in self.batches():
            own = each[:, :, batch.first : batch.first + len(batch.x)].to(batch.x.dtype)
            for part, into in zip(own.split(self.vectors), total.split(self.vectors), strict=True):
                into += self.adjoint(batch, part)
        return self.reduce(total) / math.sqrt(self.num_examples)

    def push(self, w: Tensor) -> Tensor:
        """C w: (k, params) to (k, rows) of all processes."""
        self.announce("push", w)
        rows = torch.zeros(len(w), self.num_rows, dtype=torch.float64, device=w.device)
        each = self._by_example(rows)
        for batch in self.batches():
            for part, into in zip(w.split(self.vectors), each.split(self.vectors), strict=True):
                into[:, :, batch.first : batch.first + len(batch.x)] = self.apply(batch, part).double()
        return self.reduce(rows) / math.sqrt(self.num_examples)

    def kernel(self, y: Tensor) -> Tensor:
        """K y = C C' y, (k, rows)."""
        return self.push(self.pull(y))

    def signs(self, number: int, count: int) -> Tensor:
        """Rows of random signs, (k, rows): each example's own whatever process it is on."""
        shape = (count, self.rows_per_example // self.operator.space.num_slots, self.operator.space.num_slots)
        each = [
            torch.randint(2, shape, generator=self.generator(5, number, k), dtype=torch.int8)
            for k in range(self.num_examples)
        ]
        return (2 * torch.stack(each, 2).to(self.x.device).double() - 1).flatten(1)

    def by_slot(self, rows: Tensor) -> Tensor:
        """Rows (k, rows) as (s, k, rows of the slot)."""
        return self._by_example(rows).permute(3, 0, 1, 2).flatten(2)

    def prepared(self) -> Products:
        """With the constraints of every batch at hand, for as long as this is."""
        return replace(self, ready=tuple(self._at(batch) for batch in self.batches()))

    def _by_example(self, rows: Tensor) -> Tensor:
        return rows.view(len(rows), -1, self.num_examples, self.operator.space.num_slots)

    def apply(self, batch: Batch, w: Tensor) -> Tensor:
        """Rows of one batch, undivided."""
        return self._at(batch).apply(w.to(batch.x.dtype))

    def adjoint(self, batch: Batch, rows: Tensor) -> Tensor:
        """C' of one batch, undivided."""
        return self._at(batch).adjoint(rows).double()

    def _at(self, batch: Batch) -> BatchProducts:
        if self.ready:
            return self.ready[batch.index]
        return self.operator.at(batch.x, batch.units, partial(self.replay, batch.index))

    def normal_rows(self, batch: Batch, count: int, *stream: int) -> Tensor:
        """Standard normal rows: each example's own whatever batch it is in, the same in every precision."""
        shape = (count, len(batch.units), self.operator.space.num_slots)
        each = [
            torch.randn(shape, generator=self.generator(*stream, batch.first + k), dtype=torch.float32)
            for k in range(len(batch.x))
        ]
        return torch.stack(each, 2).to(batch.x)

    @property
    def fewer_rows(self) -> bool:
        """Whether C has fewer rows than columns, so that the space of rows is the smaller one."""
        return self.num_rows < self.num_params

    def start(self, number: int, count: int) -> Tensor:
        """Standard normal vectors of the smaller space."""
        size = min(self.num_rows, self.num_params)
        return torch.randn(count, size, generator=self.generator(1, number), dtype=torch.float64).to(self.x.device)

    def normal_params(self, number: int, count: int) -> Tensor:
        """Standard normal parameter vectors."""
        draw = torch.randn(count, self.num_params, generator=self.generator(1, number), dtype=torch.float64)
        return draw.to(self.x.device)

    def generator(self, *place: int) -> torch.Generator:
        """Independent random numbers for every place, the same on every call."""
        mixed = self.seed
        for number in place:  # a linear congruence, so that near places have far seeds
            mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
        return torch.Generator().manual_seed(mixed)
