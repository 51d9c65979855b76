"""The constraints of a process's examples, batch by batch, and the random numbers that belong to each example.

With C the rows of all examples divided by the root of their number, G = C'C. Index convention: k vectors, rows are
(k, o, e, s) for outputs, examples and slots; parameter vectors are (k, params) in float64, whatever precision the
products run in. With a `scale` columns of C are derivatives along coordinates of these units: C is C diag(scale).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from capalloc._derivatives.products import BatchProducts, ConstraintOperator
from capalloc._derivatives.still_gates import gates_stay
from capalloc._derivatives.tape import Tape, names_of
from capalloc._derivatives.verify import choose_operator
from capalloc._linalg.fold import add_to
from capalloc._linalg.kronecker import LONGEST, merged_axes
from capalloc._measure.task import Task
from capalloc._measure.work_plan import LONGEST_APART, Plan, ProductCost
from capalloc._model.magnitudes import magnitudes
from capalloc._model.problem import random_signs
from capalloc._settings import Block, Stochastic

#: Outputs up to which every one is constrained by default, and random combinations for each example beyond that.
ALL_OUTPUTS, OUTPUT_PROBES = 100, 32
#: Probes solved for together, at most.
WIDEST = 64
#: Share of the bytes of the solver's vectors that a batch may take too, but where few are held: every batch reads and
#: writes as much as the parameters, so that more examples of it take less.
BESIDE_VECTORS = 1 / 4
#: Examples whose gates are looked at together, and the relative difference that says that they move: float32 rounding
#: is below it.
CHECKED, APART = 8, 1e-3


@dataclass(frozen=True)
class Examples:
    """The examples of one process; each pass gives the same constraints and draws."""

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
    scale: Tensor | None = None  # (params,), units of the parameters' coordinates; None for all 1
    longest: int = LONGEST_APART  # numbers in products of single examples that are made at a time
    lean: bool = False  # layers are held for one output and vector at a time

    @property
    def sizes(self) -> list[int]:
        return [p.numel() for p in self.operator.problem.params.values()]

    @property
    def num_params(self) -> int:
        """p."""
        return self.operator.problem.num_params

    @property
    def num_slots(self) -> int:
        """Inputs, and the constant one."""
        return self.operator.space.num_slots

    @property
    def num_constrained(self) -> int:
        """Outputs of an example that are constrained, or combinations of them."""
        return self.output_probes or self.num_outputs

    @property
    def rows_per_example(self) -> int:
        """Rows of C."""
        return self.num_constrained * self.num_slots

    @property
    def num_rows(self) -> int:
        """Rows of C."""
        return self.num_examples * self.rows_per_example

    @property
    def rank(self) -> int:
        """Rank of G, at most."""
        moving = self.num_params if self.scale is None else int((self.scale > 0).sum())
        return min(moving, self.num_rows)

    @property
    def fewer_rows(self) -> bool:
        """True where C has fewer rows than columns, so that the space of rows is the smaller one."""
        return self.num_rows < self.num_params

    @property
    def dimension(self) -> float:
        """Dimension of the sphere that probes lie on; signs, the probes in the space of rows, are on none."""
        return math.inf if self.fewer_rows else self.num_params

    def __call__(self, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of this process from one on."""
        for index, x in enumerate(self.x.split(self.batch_size) if len(self.x) else ()):
            if index >= start:
                first = self.offset + index * self.batch_size
                yield Batch(self, index, first, x, self.units(first, x))

    def units(self, first: int, x: Tensor) -> Tensor:
        """Return unit vectors, or each example's own signs, scaled so that E sum uu' = 1: the same in every pass."""
        m, q = self.num_outputs, self.output_probes
        if q is None:
            return torch.eye(m, dtype=x.dtype, device=x.device)[:, None].expand(m, len(x), m)
        signs = [random_signs((q, m), x, self.generator(2, first + k)) for k in range(len(x))]
        return torch.stack(signs, 1) / math.sqrt(q)

    def shard(self, part: slice) -> Examples:
        """Return some of the examples."""
        return replace(self, x=self.x[part], offset=part.start, replay=lambda index: self.replay(part.start + index))

    def prepared(self) -> Examples:
        """Return them with the constraints of every batch at hand, for as long as this is."""
        return replace(self, ready=tuple(batch.bound for batch in self()))

    def apart(self, vectors: int, outputs: int) -> tuple[int, int]:
        """Return how many examples and vectors go at a time where each example's C' r is wanted.

        As many products as a batch has; together they are no longer than `longest`.
        """
        room = self.batch_size * self.vectors * self.num_constrained // outputs
        most = max(1, min(room, self.longest // self.num_params))
        return max(1, most // vectors), min(vectors, most)

    def in_units(self, w: Tensor) -> Tensor:
        """Return parameter vectors in the parameters' own units, and in the precision of products."""
        return (w if self.scale is None else w * self.scale).to(self.x)

    def by_example(self, rows: Tensor) -> Tensor:
        """Return rows (k, rows of all processes) as (k, o, e, s)."""
        return rows.view(len(rows), -1, self.num_examples, self.num_slots)

    def by_slot(self, rows: Tensor) -> Tensor:
        """Return rows (k, rows of all processes) as (s, k, rows of the slot)."""
        return self.by_example(rows).permute(3, 0, 1, 2).flatten(2)

    def signs(self, number: int, count: int) -> Tensor:
        """Return rows of random signs, (k, rows): each example's own whatever process it is on."""
        shape = (count, self.num_constrained, self.num_slots)
        each = [
            torch.randint(2, shape, generator=self.generator(5, number, k), dtype=torch.int8)
            for k in range(self.num_examples)
        ]
        return (2 * torch.stack(each, 2).to(self.x.device).double() - 1).flatten(1)

    def normal_params(self, number: int, count: int) -> Tensor:
        """Return standard normal parameter vectors."""
        return self.normal(number, count, self.num_params)

    def normal(self, number: int, count: int, size: int) -> Tensor:
        """Return standard normal vectors."""
        draw = torch.randn(count, size, generator=self.generator(1, number), dtype=torch.float64)
        return draw.to(self.x.device)

    def generator(self, *place: int) -> torch.Generator:
        """Return independent random numbers for every place, the same on every call."""
        mixed = self.seed
        for number in place:  # a linear congruence, so that near places have far seeds
            mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
        return torch.Generator().manual_seed(mixed)


@dataclass(frozen=True)
class Batch:
    """Some examples, the combinations of outputs that are constrained, and their place in the data."""

    source: Examples
    index: int
    first: int  # place of its first example among those of all processes
    x: Tensor
    units: Tensor  # (o, e, outputs)

    @cached_property
    def bound(self) -> BatchProducts:
        """The constraints of these examples."""
        if self.source.ready:
            return self.source.ready[self.index]
        return self.source.operator.at(self.x, self.units, partial(self.source.replay, self.index))

    @property
    def place(self) -> slice:
        """Place among the examples of all processes."""
        return slice(self.first, self.first + len(self.x))

    def split(self, *vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield the parts of several blocks of vectors that go at a time."""
        return zip(*(v.split(self.source.vectors) for v in vectors), strict=True)

    def by_output(self) -> Iterator[tuple[slice, BatchProducts]]:
        """Yield the outputs whose constraints are held together, and these."""
        if not self.source.lean:
            yield slice(None), self.bound
            return
        for k in range(len(self.units)):
            own = slice(k, k + 1)
            yield own, self.source.operator.at(self.x, self.units[own], partial(self.source.replay, self.index))

    def apply(self, w: Tensor) -> Tensor:
        """Return the rows of C w, undivided, for w as `Examples.in_units` gives it."""
        at_once, rows = 1 if self.source.lean else len(w), []
        for _, bound in self.by_output():
            rows.append(torch.cat([bound.apply(part) for part in w.split(at_once)]))
            del bound  # before the next is made
        return torch.cat(rows, 1)

    def adjoint(self, rows: Tensor) -> Tensor:
        """Return C' rows, undivided; in float64 with a scale, else in the precision of products."""
        found, scale = self.bound.adjoint(rows), self.source.scale
        return found if scale is None else found * scale

    def add_adjoint(self, into: Tensor, rows: Tensor) -> None:
        at_once = 1 if self.source.lean else len(rows)
        for outputs, bound in self.by_output():
            for total, part in zip(into.split(at_once), rows[:, outputs].split(at_once), strict=True):
                places = total.split(self.source.sizes, 1)
                for place, piece, own in zip(places, bound.pieces(part), self._scales, strict=True):
                    add_to(place, piece if own is None else piece * own)
            del bound

    def each(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield C' rows of every example apart, tensor by tensor, (k e, entries), in the precision of products."""
        for piece, own in zip(self.bound.each_by_tensor(rows), self._scales, strict=True):
            yield (piece if own is None else piece * own.to(piece)).flatten(0, 1)

    @property
    def _scales(self) -> Sequence[Tensor | None]:
        """The units of every tensor, if any."""
        scale, sizes = self.source.scale, self.source.sizes
        return [None] * len(sizes) if scale is None else scale.split(sizes)

    def normal_rows(self, count: int, *stream: int) -> Tensor:
        """Return standard normal rows: each example's own whatever batch it is in, the same in every precision."""
        shape = (count, len(self.units), self.source.num_slots)
        each = [
            torch.randn(shape, generator=self.source.generator(*stream, self.first + k), dtype=torch.float32)
            for k in range(len(self.x))
        ]
        return torch.stack(each, 2).to(self.x)


def plan_examples(
    task: Task,
    settings: Stochastic | Block,
    together: int | None = None,
    longest_axis: int = LONGEST,
    own: bool = False,
) -> tuple[Examples, Plan]:
    """Return all examples with the way to their products that is right for the model, and how the work is cut.

    Args:
        task: the model and its examples.
        settings: those of the solver.
        together: vectors that are held at a time; by default as many as there are probes.
        longest_axis: axis of a parameter tensor whose basis may be another than its own.
        own: the task's model is for these examples alone, and may be in the precision of products from then on.

    """
    x, num_outputs = task.x.to(task.precision), task.size.outputs
    probes = settings.output_probes or (OUTPUT_PROBES if num_outputs > ALL_OUTPUTS else num_outputs)
    wanted = first_block(task.size.params) if isinstance(settings.num_probes, str) else settings.num_probes
    cost = cost_of(task, min(probes, num_outputs), longest_axis)
    most = wanted if isinstance(settings, Block) else max(2, min(wanted, WIDEST, cost.params))
    plan = cost.plan(together or most, task.batch_size, task.budget, 0.0 if together else BESIDE_VECTORS)
    first = x[:1].to(task.problem.dtype)
    operator = choose_operator(task.problem, task.space, first, lambda: task.replay(0), x.dtype, own)
    if gates_move(operator, x, task.replay):
        operator = replace(operator, name="forward")
    combined = probes if probes < num_outputs else None
    sizes = (plan.batch_size, plan.chunk, num_outputs, combined)
    is_log = isinstance(settings, Stochastic) and settings.coordinates == "log"
    scale = magnitudes(task.problem.params) if is_log else None
    return Examples(operator, x, *sizes, task.replay, task.seed, len(x), scale=scale, longest=plan.apart), plan


def first_block(num_params: int) -> int:
    """Return the number of probes of the first solve: the more parameters, the less each leaves to chance.

    At least two, whose pair tells the error of all parts together.
    """
    return max(2, min(WIDEST, 100_000 // num_params))


def cost_of(task: Task, outputs: int, longest_axis: int = LONGEST) -> ProductCost:
    """Return what a product costs, by one run over one example."""
    problem, size = task.problem, task.size
    with Tape(names_of(problem)) as tape:
        problem(problem.probe)
    elements = tape.elements + problem.probe.numel()
    itemsize = torch.finfo(task.precision).bits // 8
    merged = [axis for p in problem.params.values() for axis in merged_axes(p.shape)]
    axes = tuple(axis for axis in merged if axis <= longest_axis)
    return ProductCost(elements, outputs, size.slots, size.params, itemsize, size.examples, axes)


def gates_move(operator: ConstraintOperator, x: Tensor, replay: Callable[[int], AbstractContextManager[None]]) -> bool:
    """Return True where piecewise products are wrong at any example, by one with each in forward mode beside.

    At the first they were held against autograd already. Where all calls are linear piece by piece there is no need.
    """
    if operator.name != "piecewise" or len(x) == 1 or gates_stay(operator.problem, x[:1], lambda: replay(0)):
        return False
    other = replace(operator, name="forward")
    random = torch.Generator().manual_seed(0)
    for index, one in enumerate(x[1:].split(CHECKED), 1):
        shape = (1, 1, len(one), operator.space.num_slots)
        rows = torch.randn(shape, generator=random).to(one)
        units = torch.randn(1, len(one), operator.problem(one[:1]).shape[1], generator=random).to(one)
        here = operator.at(one, units, partial(replay, index)).adjoint(rows)
        try:
            there = other.at(one, units, partial(replay, index)).adjoint(rows)
        except RuntimeError:  # some operators know no forward mode: by autograd, at a few examples
            apart = x[1:].to(operator.problem.dtype)[:CHECKED].split(1)
            found = [choose_operator(operator.problem, operator.space, a, lambda: replay(0)) for a in apart]
            return any(each.name != operator.name for each in found)
        if (here - there).norm() > APART * there.norm():
            return True
    return False
