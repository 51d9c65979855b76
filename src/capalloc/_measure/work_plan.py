"""The work of the dense and of the stochastic solver: what it is of, in numbers, and how it is cut to free memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from capalloc._linalg.gram_root import GATHERED
from capalloc._linalg.symmetric import strips_of
from capalloc._runtime.memory import FLOAT64, Budget

#: Rows of a slot from which on its Gram matrix takes less than reading its scores off rows; rows that each tensor adds,
#: and that each adds once for all slots. They are of sizes from 100 to 1600 parameters.
ROWS_OF_SLOT, OF_TENSOR, OF_TENSOR_ONCE = 160, 1, 40
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


@dataclass(frozen=True)
class Plan:
    """The work as it is cut, and the bytes of it all."""

    batch_size: int
    chunk: int  # directions, or vectors, at a time
    keep: bool  # what one pass over the examples made serves the next
    num_bytes: int
    probes: int = 0  # solved for together by the stochastic solver
    apart: int = LONGEST_APART  # numbers at a time in products of single examples
    by_slot: bool = False  # the dense solver keeps Gram matrices by slot, and needs rows once


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

    @property
    def by_slot_bytes(self) -> int:
        """Bytes of the Gram matrices of all slots, and of the rows that are gathered for them."""
        gathered = min(GATHERED, self.examples * self.outputs) * self.params
        return FLOAT64 * self.slots * (sum((stop - start) * stop for start, stop in strips_of(self.params)) + gathered)

    def pays_by_slot(self, tensors: int) -> bool:
        """True where Gram matrices by slot take less time than a second product with rows, for so many tensors."""
        least = ROWS_OF_SLOT + tensors * (OF_TENSOR + OF_TENSOR_ONCE / self.slots) + self.params / self.slots
        return not self.wide and self.examples * self.outputs >= least

    def beside_solver(self, budget: Budget) -> Budget:
        """Return what the dense solver's own matrices leave, or raise `MemoryError` if these would not fit."""
        return budget.set_aside(
            self.solver_bytes,
            f"the exact solver for {self.params} parameters and {self.rows} rows of constraints",
            "take fewer parameters with params= or fewer examples",
        )

    def plan(self, numbers: int, batch_size: int | str, budget: Budget, kept_share: float, tensors: int = 0) -> Plan:
        """Cut the work of the dense solver.

        Args:
            numbers: float64 numbers that one example and direction hold at once.
            batch_size: examples at a time, or "auto".
            budget: bytes that may be filled.
            kept_share: share of what the solver leaves, up to which rows are kept between passes, or Gram matrices.
            tensors: of parameters, where Gram matrices may be kept by slot; 0 where not.

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
        most = kept_share * room.num_bytes
        by_slot = tensors > 0 and self.pays_by_slot(tensors) and self.by_slot_bytes < most
        keep = self.wide or (not by_slot and self.stored_bytes < most)
        kept = self.by_slot_bytes if by_slot else self.stored_bytes if keep and not self.wide else 0
        return Plan(size, chunk, keep, self.solver_bytes + size * chunk * each + kept, by_slot=by_slot)


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

    def plan(self, probes: int, batch_size: int | str, budget: Budget, beside_vectors: float = 0.0) -> Plan:
        """Cut the work of the stochastic solver.

        Args:
            probes: to be solved for together, if memory allows.
            batch_size: examples at a time, or "auto".
            budget: bytes that may be filled.
            beside_vectors: share of what the solver's own vectors take, up to which a batch may be larger.

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
        aim = min(room.num_bytes, max(BATCH_BYTES, beside_vectors * fixed))
        vectors = probes + 1  # the spectrum's comes along
        while vectors > 1 and self.product(min(self.examples, EXAMPLES_FIRST), vectors) > aim:
            vectors = (vectors + 1) // 2
        each = self.product(1, vectors)
        whole = each + self.rows(probes)
        size = room.batch_size(whole, self.examples, batch_size, aim * whole / each)
        apart = min(LONGEST_APART, int(APART_SHARE * budget.num_bytes / self.itemsize))
        return Plan(size, vectors, hold, fixed + size * whole + hold * held, probes, apart)
