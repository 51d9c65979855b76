"""The energy networks of all examples, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import torch
from tqdm import tqdm

from capalloc._energy.affine_stretch import InputStart
from capalloc._energy.carriers import NO_PRODUCTS, Carriers, Products, check_gates, find
from capalloc._energy.gate_sources import GATE_SOURCES, GateSource
from capalloc._energy.markov import Batch, FloatRangeError
from capalloc._energy.sweep import BYTES_OF_ROWS
from capalloc._energy.symmetries.labels import DEFAULT_LIMITS, Limits
from capalloc._energy.trace import NOTHING_WATCHED, Watch, trace
from capalloc._graph.capture import Graph, capture
from capalloc._model.checks import check_batch_size
from capalloc._model.input_metric import InputMetric
from capalloc._model.problem import Problem, seeded
from capalloc._runtime.memory import available_bytes, budget_of

#: Examples walked at once by default, where memory allows: enough to fill two cores on small networks.
DEFAULT_BATCH = 64
#: Numbers kept for each that the graph computes: an energy, its gate and two adjoints; and for each row of a table
#: at the inputs: what arrives there, alone and beside other rows.
KEPT, KEPT_OF_ROWS = 4, 3
#: Of these, what a walk takes whatever is let go early: stacks of 4 and 12 convolutions took 2.3.
LEAST_KEPT = 2
#: Numbers of one example above which a float32 model's energies are float32 too. Sums of positive terms lose nothing
#: to cancellation: on ResNets, a stack of 40 convolutions and a GPT the two precisions agree to 1e-7 of the total.
FLOAT64_LIMIT = 2**16
Precision = torch.dtype | Literal["auto"]
Solved = TypeVar("Solved")


def check_walk(gates: str, batch_size: int | str) -> None:
    """Raise ValueError where one of these arguments of a walk is none."""
    if gates not in GATE_SOURCES:
        raise ValueError(f"gates must be one of {GATE_SOURCES}, got {gates!r}")
    check_batch_size(batch_size)


@dataclass(frozen=True)
class Batches:
    """The batches of a problem; calling it gives every batch's program and output seed, the same each time."""

    problem: Problem
    graph: Graph
    gates: GateSource
    examples: int
    dtype: torch.dtype = torch.float64
    progress: bool = False
    carriers: Carriers = field(default_factory=Carriers)
    products: Products = field(default_factory=dict)
    watch: Watch = NOTHING_WATCHED
    start: InputStart | None = None
    limits: Limits = DEFAULT_LIMITS  # of what counting symmetries may hold

    @classmethod
    def of(
        cls,
        problem: Problem,
        gates: GateSource,
        batch_size: int | str,
        *,
        dtype: Precision = "auto",
        progress: bool = False,
        products: Products | None = None,
        metric: InputMetric | None = None,
        table_rows: int = 0,
    ) -> Batches:
        """Capture the model at the batch size; without data gates one example stands for all; `table_rows` apart."""
        check_batch_size(batch_size)
        if problem.layout is not None and metric is not None and metric.center is not None:
            problem.layout.check_alike("a centred metric of paths")
        examples = problem.count() if gates == "data" else 1
        size = min(examples, batch_size if isinstance(batch_size, int) else DEFAULT_BATCH)
        graph = capture(problem, size)
        if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating point type, got {dtype}")
        if isinstance(dtype, str):
            dtype = torch.float64 if graph.entries() <= FLOAT64_LIMIT * size else problem.dtype
        of_rows = KEPT_OF_ROWS * table_rows * problem.probe.numel() * graph.batch_size
        kept = dtype.itemsize * max(1, KEPT * graph.entries() + of_rows)
        fitting = (available_bytes(problem.probe.device) // 2 * size) // kept
        if table_rows:  # many sweeps, of tensors that are quick to have anew, rather than few
            fitting = min(fitting, BYTES_OF_ROWS * size // (dtype.itemsize * max(1, *graph.sizes())))
        least = dtype.itemsize * LEAST_KEPT * graph.entries() / size
        together = graph.batch_size if isinstance(batch_size, int) else 1
        budget_of(problem.probe.device).set_aside(
            together * least,
            f"a walk with the path energies of {together} example{'s' * (together > 1)}",
            "lower batch_size" if together > 1 else "take smaller inputs, or capalloc.measure with params=",
        )
        if batch_size == "auto" and fitting < size:
            graph = capture(problem, max(1, fitting))
        products = products or NO_PRODUCTS
        carriers = find(graph, products)
        check_gates(carriers, gates)
        start = None if metric is None else InputStart.of(graph, carriers, metric)
        return cls(problem, graph, gates, examples, dtype, progress, carriers, products, start=start)

    @property
    def number(self) -> int:
        return -(-self.examples // self.graph.batch_size)

    def __call__(self, layers: bool = False, weights: bool = True) -> Iterator[Batch]:
        """Trace every batch in turn; `layers` keeps the energies of every layer, `weights` those that enter weights."""
        problem = self.problem if self.gates == "data" else replace(self.problem, inputs=self.problem.probe)
        batches = problem.padded_batches(self.graph.batch_size)
        selected = set(self.problem.params)
        bar = tqdm(batches, total=self.number, disable=not self.progress, desc="path energy")
        for k, (batch, count) in enumerate(bar):
            with seeded(k, batch.device):
                program = trace(
                    self.graph,
                    batch,
                    self.gates,
                    selected,
                    self.dtype,
                    layers=layers,
                    weights=weights,
                    carriers=self.carriers,
                    watch=self.watch,
                    start=self.start,
                    limits=self.limits,
                )
            seed = torch.ones_like(program.values[program.output])
            seed[count:] = 0
            yield program, seed


def solve_in_range(
    batches_of: Callable[[Precision], Batches], solve: Callable[[Batches], Solved], dtype: Precision = "auto"
) -> tuple[Solved, Batches]:
    """Solve on batches in that precision, or in float64 where float32 loses path energies; and give the batches."""
    batches = batches_of(dtype)
    try:
        return solve(batches), batches
    except FloatRangeError:
        batches = batches_of(torch.float64)
        return solve(batches), batches
