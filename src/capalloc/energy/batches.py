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
from capalloc.problem import Problem, seeded

#: Examples walked at once by default: enough to fill two cores on small networks.
DEFAULT_BATCH = 64


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
        return cls(problem, capture(problem, size), gates, examples, progress)

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
