"""How the work is cut, by a forecast of its memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._derivatives.products import ConstraintOperator
from capalloc._derivatives.tape import Tape
from capalloc._measure.settings import Settings
from capalloc._runtime.memory import FLOAT64, SHARE, available_bytes, require

#: Bytes of working memory that a product aims at: larger ones leave the caches and gain nothing.
PRODUCT_BYTES = 2**28
#: Examples that go together before vectors do: many with two vectors take two thirds of the time of few with five.
EXAMPLES_FIRST = 12
#: Blocks of parameter vectors alive at once: the iterate's, the product's, the preconditioner's and their sums.
BLOCKS = 12
#: The same where vectors are rows: they are pulled back to parameters for products and at the end.
PULLED = 6
#: Share of the free memory that sensitivities of all batches may take.
HELD = 0.25
#: Probes solved for together, at most.
WIDEST = 64
#: Tensors of activations alive at once for each output and vector, and for each example beside.
PER_VECTOR, PER_OUTPUT, PER_EXAMPLE = 5, 3, 4


@dataclass(frozen=True)
class Cut:
    """Examples and vectors in one product, probes in one solve, and the bytes forecast for all."""

    batch_size: int
    vectors: int
    block: int
    forecast: int
    hold: bool = False  # every batch's sensitivities, from the first product to the last


@dataclass(frozen=True)
class Load:
    """What one example costs: numbers in its activations, outputs constrained, slots; and the parameters."""

    elements: int
    outputs: int
    slots: int
    params: int
    bytes_per_number: int
    rows: int = 0  # of all examples; none known

    def product(self, batch_size: int, vectors: int) -> int:
        """Bytes of one product."""
        activations = self.elements * (PER_EXAMPLE + self.outputs * (PER_OUTPUT + PER_VECTOR * vectors))
        rows = 4 * self.outputs * self.slots * vectors
        return batch_size * self.bytes_per_number * (activations + rows)

    def vectors(self, block: int) -> int:
        """Bytes of the solver's vectors, and of the inner products by slot."""
        if 0 < self.rows < self.params:
            own = 2 * BLOCKS * block * self.rows + PULLED * block * self.params
        else:
            own = (BLOCKS * block + 4) * self.params
        return FLOAT64 * (own + 5 * self.slots * block**2)

    def held(self, num_examples: int) -> int:
        """Bytes of all examples' activations and sensitivities."""
        return num_examples * self.bytes_per_number * self.elements * (PER_EXAMPLE + self.outputs)


def load_of(operator: ConstraintOperator, outputs: int, num_examples: int) -> Load:
    """By one run over one example."""
    problem = operator.problem
    with Tape() as tape:
        problem(problem.probe)
    size = torch.finfo(problem.dtype).bits // 8
    elements = tape.elements + problem.probe.numel()
    slots = operator.space.num_slots
    return Load(elements, outputs, slots, problem.num_params, size, num_examples * outputs * slots)


def make_cut(load: Load, x: Tensor, settings: Settings, batch_size: int | str) -> Cut:
    """Cut the work to what the free memory holds, or raise `MemoryError` before it starts."""
    budget = SHARE * available_bytes(x.device)
    wanted = first_block(load.params) if isinstance(settings.asked.num_probes, str) else int(settings.asked.num_probes)
    block = max(2, min(wanted, WIDEST, load.params))
    while block > 2 and load.vectors(block) > budget / 2:
        block //= 2
    fixed = load.vectors(block)
    require(
        fixed,
        budget,
        f"the stochastic solver for {load.params} parameters",
        "take fewer parameters with params=, or more memory",
    )
    room = budget - fixed
    require(
        load.product(1, 1),
        room,
        f"one example with {load.outputs} constrained outputs",
        "constrain fewer outputs with outputs= or random combinations of them with output_probes=",
    )
    aim = min(room, PRODUCT_BYTES)
    vectors = block + 1  # the spectrum's comes along
    while vectors > 1 and load.product(min(len(x), EXAMPLES_FIRST), vectors) > aim:
        vectors = (vectors + 1) // 2
    if isinstance(batch_size, str):
        size = max(1, min(len(x), int(aim / load.product(1, vectors))))
    else:
        size = min(batch_size, len(x))
        require(load.product(size, vectors), room, f"a batch of {size} examples", 'lower batch_size or leave it "auto"')
    held = load.held(len(x))
    hold = held < HELD * budget
    return Cut(size, vectors, block, fixed + load.product(size, vectors) + hold * held, hold)


def first_block(num_params: int) -> int:
    """Probes of the first solve: the more parameters, the less each probe leaves to chance."""
    return max(4, min(WIDEST, 100_000 // num_params))
