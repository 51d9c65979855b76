"""The planner of memory: what is free on a device, how work is cut to it, and the refusal of what would not fit.

Each kind of work states what it costs; a `Budget` says how much of it fits at a time.
"""

from __future__ import annotations

import ctypes
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from capalloc._runtime.memory_limits import bytes_within_limits

FLOAT64 = 8
#: Share of the free memory that a computation may plan to fill.
SHARE = 0.7
#: Bytes of working memory that a batch aims at, unless the dense solver gains from more rows.
BATCH_BYTES = 2**28
#: Examples that go together before vectors do: many with two vectors take two thirds of the time of few with five.
EXAMPLES_FIRST = 12
#: Vectors alive at once for each probe: the iterate's, the product's, the preconditioner's and their sums.
VECTORS = 12
#: The same where vectors are rows: they are pulled back to parameters for products and at the end.
PULLED = 6
#: Share of the budget that sensitivities of all batches may take.
HELD_SHARE = 0.25
#: Copies of the rows of all probes that are alive at once in a batch: in parts, joined, and in the order of slots.
ROW_COPIES = 4
#: Numbers in products of single examples that are made at a time, and in constraints of the constant input; and the
#: share of the budget that one copy of them may take, of four.
LONGEST_APART, APART_SHARE = 2**26, 1 / 8
#: Matrices alive at once in finding the basis of an axis, in float64.
OF_BASIS = 3
#: Tensors of activations alive at once for each output and vector, and for each example beside.
PER_VECTOR, PER_OUTPUT, PER_EXAMPLE = 5, 3, 4
#: Numbers in a model from which on it is worth some hundredths of a second to return what is free.
LEAST_GIVEN_BACK = 2**21


@dataclass(frozen=True)
class Budget:
    """Bytes that may still be filled."""

    num_bytes: float

    def set_aside(self, num_bytes: float, what: str, way_out: str) -> Budget:
        """Return what is left after `num_bytes`.

        Raises:
            MemoryError: they do not fit; with the numbers and the way out.

        """
        if num_bytes > self.num_bytes:
            raise MemoryError(f"{what} needs {gib(num_bytes)}, and {gib(self.num_bytes)} may be used; {way_out}")
        return Budget(self.num_bytes - num_bytes)

    def batch_size(self, each: float, examples: int, asked: int | str, aim: float) -> int:
        """Return how many examples of `each` bytes go at a time: as many as asked, or for "auto" as fill `aim` bytes.

        Raises:
            MemoryError: as many as asked do not fit.

        """
        if isinstance(asked, str):
            return max(1, min(examples, int(min(aim, self.num_bytes) / each)))
        self.set_aside(
            min(asked, examples) * each, f"a batch of {asked} examples", 'lower batch_size or leave it "auto"'
        )
        return min(asked, examples)


def budget_of(device: torch.device, max_bytes: float | None = None) -> Budget:
    """Return `max_bytes`, or a share of the free memory of a device.

    Raises:
        ValueError: no such number of bytes.

    """
    if max_bytes is not None and not 0 < max_bytes < math.inf:
        raise ValueError(f"max_bytes must be a positive, finite number or None, got {max_bytes!r}")
    return Budget(SHARE * available_bytes(device) if max_bytes is None else max_bytes)


@dataclass(frozen=True)
class Plan:
    """The work as it is cut, and the bytes of it all."""

    batch_size: int
    chunk: int  # directions, or vectors, at a time
    keep: bool  # what one pass over the examples made serves the next
    num_bytes: int
    probes: int = 0  # solved for together by the stochastic solver
    apart: int = LONGEST_APART  # numbers at a time in products of single examples


@dataclass(frozen=True)
class Size:
    """Numbers that make the constraint matrix: examples x outputs x slots rows, params columns."""

    examples: int
    outputs: int
    slots: int
    params: int

    @property
    def rows(self) -> int:
        return self.examples * self.outputs * self.slots

    @property
    def wide(self) -> bool:
        """True for fewer rows than parameters."""
        return self.rows < self.params

    def limits(self, rank: float) -> tuple[list[str], dict[str, Any]]:
        """Say that the examples limit a rank; where all rows are independent the first half has half of them."""
        if not self.wide:
            return [], {}
        notes = [f"{self.rows} rows of constraints for {self.params} parameters: limited by the data"]
        half = self.examples // 2
        known = {"half_examples": half, "half_total": half * self.outputs * self.slots}
        return notes, {"limited_by_data": True} | (known if half and rank == self.rows else {})

    @property
    def stored_bytes(self) -> int:
        return FLOAT64 * self.rows * self.params

    @property
    def solver_bytes(self) -> int:
        """Bytes of the dense solver's own matrices."""
        return FLOAT64 * 13 * min(self.rows, self.params) ** 2 + (3 * self.stored_bytes if self.wide else 0)

    def beside_solver(self, budget: Budget) -> Budget:
        """Return what the dense solver's own matrices leave, or raise `MemoryError` if these would not fit."""
        return budget.set_aside(
            self.solver_bytes,
            f"the exact solver for {self.params} parameters and {self.rows} rows of constraints",
            "take fewer parameters with params= or fewer examples",
        )

    def plan(self, numbers: int, batch_size: int | str, budget: Budget, kept_share: float) -> Plan:
        """Cut the work of the dense solver.

        Args:
            numbers: float64 numbers that one example and direction hold at once.
            batch_size: examples at a time, or "auto".
            budget: bytes that may be filled.
            kept_share: share of what the solver leaves, up to which rows are kept between passes.

        Raises:
            MemoryError: the solver, one example or a batch would not fit.

        """
        room = self.beside_solver(budget)
        each = FLOAT64 * numbers
        room.set_aside(
            each,
            f"one example along one of {self.slots} directions, with {self.outputs} outputs",
            "take fewer parameters with params= or fewer outputs with outputs=",
        )
        chunk = min(self.slots, int(room.num_bytes / each))
        aim = min(room.num_bytes / 2, max(BATCH_BYTES, 3 * FLOAT64 * 4 * self.params**2))
        half = -(-self.examples // 2)  # two batches or more, so that the total on half of them is known too
        size = room.batch_size(chunk * each, half if batch_size == "auto" else self.examples, batch_size, aim)
        keep = self.wide or self.stored_bytes < kept_share * room.num_bytes
        kept = self.stored_bytes if keep and not self.wide else 0
        return Plan(size, chunk, keep, self.solver_bytes + size * chunk * each + kept)


@dataclass(frozen=True)
class ProductCost:
    """Numbers that make the cost of a product with the constraints, of one example and of all."""

    elements: int  # in the activations of one example
    outputs: int
    slots: int
    params: int
    itemsize: int
    examples: int
    axes: tuple[int, ...] = ()  # those of parameter tensors that blocks have a basis of

    @property
    def bases(self) -> int:
        """Bytes of the bases of blocks, of the moments that they are made from, and of making the largest."""
        squares = [axis**2 for axis in self.axes]
        return 2 * self.itemsize * sum(squares) + OF_BASIS * FLOAT64 * max(squares, default=0)

    def rows(self, probes: int) -> int:
        """Bytes of what probes see of one example, which sums hold for all of them together."""
        return ROW_COPIES * self.itemsize * self.outputs * self.slots * probes

    def product(self, batch_size: int, vectors: int) -> int:
        activations = self.elements * (PER_EXAMPLE + self.outputs * (PER_OUTPUT + PER_VECTOR * vectors))
        rows = 4 * self.outputs * self.slots * vectors
        return batch_size * self.itemsize * (activations + rows)

    def vectors(self, probes: int) -> int:
        """Bytes of the solver's vectors, and of the inner products by slot."""
        rows = self.examples * self.outputs * self.slots
        if rows < self.params:
            own = 2 * VECTORS * probes * rows + PULLED * probes * self.params
        else:
            own = (VECTORS * probes + 4) * self.params
        moments = 6 * self.examples * self.slots
        return FLOAT64 * (own + moments + 5 * self.slots * probes**2)

    def plan(self, probes: int, batch_size: int | str, budget: Budget) -> Plan:
        """Cut the work of the stochastic solver.

        Args:
            probes: to be solved for together, if memory allows.
            batch_size: examples at a time, or "auto".
            budget: bytes that may be filled.

        Raises:
            MemoryError: the solver, one example or a batch would not fit.

        """
        most = budget.num_bytes / 2 - self.bases
        while probes > 2 and max(self.vectors(probes), 2 * self.rows(probes)) > most:
            probes //= 2
        fixed = self.vectors(probes) + self.bases
        room = budget.set_aside(
            fixed,
            f"the stochastic solver for {self.params} parameters",
            "take fewer parameters with params=, or more memory",
        )
        beside = room.set_aside(
            self.product(1, 1) + self.rows(probes),
            f"one example with {self.outputs} constrained outputs",
            "constrain fewer outputs with outputs= or random combinations of them with output_probes=",
        )
        held = self.examples * self.itemsize * self.elements * (PER_EXAMPLE + self.outputs)  # all sensitivities
        hold = held < min(HELD_SHARE * budget.num_bytes, beside.num_bytes)
        room = Budget(room.num_bytes - hold * held)
        aim = min(room.num_bytes, BATCH_BYTES)
        vectors = probes + 1  # the spectrum's comes along
        while vectors > 1 and self.product(min(self.examples, EXAMPLES_FIRST), vectors) > aim:
            vectors = (vectors + 1) // 2
        each = self.product(1, vectors)
        whole = each + self.rows(probes)
        size = room.batch_size(whole, self.examples, batch_size, aim * whole / each)
        apart = min(LONGEST_APART, int(APART_SHARE * budget.num_bytes / self.itemsize))
        return Plan(size, vectors, hold, fixed + size * whole + hold * held, probes, apart)


def available_bytes(device: torch.device) -> int:
    """Return the free memory of the device, in bytes; of the machine's no more than limits leave to this process."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    page = os.sysconf("SC_PAGE_SIZE")
    free = page * os.sysconf("SC_AVPHYS_PAGES")
    return int(min(max(free, _available_linux()), bytes_within_limits()))


def _available_linux() -> int:
    """Free memory counting the page cache, which the kernel gives back; 0 where it is not reported."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return 0


def give_back(numbers: int) -> None:
    """Return freed memory to the system beside vectors of so many numbers, where they are long.

    The C library, glibc, keeps what layers leave in pieces, and grows for the next that fits into none of them.
    """
    if numbers >= LEAST_GIVEN_BACK:
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)


def gib(num_bytes: float) -> str:
    """Return a number of bytes in words."""
    return f"{num_bytes / 2**30:.3g} GiB"
