"""The energy networks of all examples, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from capalloc.energy.capture import Graph, capture
from capalloc.energy.gates import GateSource
from capalloc.energy.markov import Batch
from capalloc.energy.trace import trace
from capalloc.memory import available_bytes
from capalloc.problem import Problem, seeded

#: Examples walked at once by default, where memory allows: enough to fill two cores on small networks.
DEFAULT_BATCH = 64
#: Memory for each number that the graph computes: an energy, its gate and two adjoints in float64.
BYTES_PER_ENTRY = 32


@dataclass(frozen=True)
class Batches:
    """Calling it gives every batch's program and output seed, the same each time."""

    problem: Problem
    graph: Graph
    gates: GateSource
    examples: int
    progress: bool = False

    @classmethod
    def of(cls, problem: Problem, gates: GateSource, batch_size: int | str, *, progress: bool) -> Batches:
        """Capture the model at the batch size; without data gates one example stands for all."""
        examples = problem.count() if gates == "data" else 1
        size = min(examples, batch_size if isinstance(batch_size, int) else DEFAULT_BATCH)
        graph = capture(problem, size)
        fitting = (available_bytes(problem.probe.device) // 2 * size) // (BYTES_PER_ENTRY * graph.entries())
        if batch_size == "auto" and fitting < size:
            graph = capture(problem, max(1, fitting))
        return cls(problem, graph, gates, examples, progress)

    @property
    def number(self) -> int:
        """Number of batches."""
        return -(-self.examples // self.graph.batch_size)

    def __call__(self) -> Iterator[Batch]:
        """Trace every batch in turn."""
        batches = self.problem.batches(self.graph.batch_size) if self.gates == "data" else iter([self.problem.probe])
        selected = set(self.problem.params)
        bar = tqdm(batches, total=self.number, disable=not self.progress, desc="path energy")
        for k, batch in enumerate(bar):
            missing = self.graph.batch_size - len(batch)
            padded = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch
            with seeded(k, batch.device):
                program = trace(self.graph, padded, self.gates, selected)
            seed = torch.ones_like(program.values[program.output])
            seed[len(batch) :] = 0
            yield program, seed
