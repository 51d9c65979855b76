"""Sums over examples: the one place where the constraints of all examples meet.

With C the rows of all examples divided by the root of their number, G = C'C. Index convention: k vectors, rows are
(k, o, e, s) for outputs, examples and slots; parameter vectors are (k, params) in float64, whatever precision the
products run in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from capalloc.jacobian.operator import ConstraintOperator
from capalloc.problem import random_signs

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
    reduce: Reduce = alone
    announce: Callable[..., object] = silent

    @property
    def num_params(self) -> int:
        """p."""
        return self.operator.problem.num_params

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
        return self._sum(lambda batch, part: self.adjoint(batch, self.apply(batch, part)), w) / self.num_examples

    def noise(self, number: int, count: int) -> Tensor:
        """C' xi for `count` draws of standard normal rows: N(0, G) each."""
        self.announce("noise", number, count)
        total = torch.zeros(count, self.num_params, dtype=torch.float64, device=self.x.device)
        for batch in self.batches():
            xi = self.normal_rows(batch, count, 0, number)
            for part, one in zip(total.split(self.vectors), xi.split(self.vectors), strict=True):
                part += self.adjoint(batch, one)
        return self.reduce(total) / math.sqrt(self.num_examples)

    def read(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """G w, and for every slot the inner products of the rows of C w: (k, params) and (s, k, k)."""
        self.announce("read", w)
        slots, k = self.operator.space.num_slots, len(w)
        total = torch.zeros_like(w)
        inner = torch.zeros(slots, k, k, dtype=torch.float64, device=w.device)
        for batch in self.batches():
            rows = torch.cat([self.apply(batch, part) for part in w.split(self.vectors)])
            for start in range(0, k, self.vectors):
                total[start : start + self.vectors] += self.adjoint(batch, rows[start : start + self.vectors])
            by_slot = rows.permute(3, 0, 1, 2).flatten(2)
            inner += (by_slot @ by_slot.mT).double()
        return self.reduce(total) / self.num_examples, self.reduce(inner) / self.num_examples

    def apply(self, batch: Batch, w: Tensor) -> Tensor:
        """Rows of one batch, undivided."""
        return self.operator.apply(w.to(batch.x.dtype), batch.x, batch.units, partial(self.replay, batch.index))

    def adjoint(self, batch: Batch, rows: Tensor) -> Tensor:
        """C' of one batch, undivided."""
        return self.operator.adjoint(rows, batch.x, batch.units, partial(self.replay, batch.index)).double()

    def normal_rows(self, batch: Batch, count: int, *stream: int) -> Tensor:
        """Standard normal rows: each example's own whatever batch it is in, the same in every precision."""
        shape = (count, len(batch.units), self.operator.space.num_slots)
        each = [
            torch.randn(shape, generator=self.generator(*stream, batch.first + k), dtype=torch.float32)
            for k in range(len(batch.x))
        ]
        return torch.stack(each, 2).to(batch.x)

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

    def _sum(self, product: Callable[[Batch, Tensor], Tensor], w: Tensor) -> Tensor:
        total = torch.zeros_like(w)
        for batch in self.batches():
            for part, into in zip(w.split(self.vectors), total.split(self.vectors), strict=True):
                into += product(batch, part)
        return self.reduce(total)
