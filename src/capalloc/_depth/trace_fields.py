"""The energy networks in which a field of paths is sought: every gate open that other inputs would open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from capalloc._energy.batches import Batches
from capalloc._energy.carriers import find
from capalloc._energy.gate_sources import GateSource
from capalloc._energy.open_gates import draws_apart, examples_choose, open_gates
from capalloc._energy.program import Program
from capalloc._energy.rules.registration import UnsupportedOperatorError
from capalloc._energy.trace import Watch, trace
from capalloc._graph.capture import capture
from capalloc._model.problem import seeded


@dataclass(frozen=True)
class FieldPrograms:
    """One program for all examples; one for each batch of them where what they choose decides."""

    batches: Batches  # whose watch opens gates
    gates: GateSource
    layers: bool
    chosen: bool  # whether examples choose the entries that paths go through
    drawn: bool  # whether random numbers of the model do
    first: Program

    @classmethod
    def of(cls, batches: Batches, *, layers: bool = False) -> FieldPrograms:
        """Open the gates, and trace the first example."""
        problem = batches.problem
        graph, carriers = batches.graph, batches.carriers
        with seeded(0, problem.probe.device):
            if problem.program is not None:  # of a program that takes any number of examples two tell the field
                graph = capture(problem, min(2, batches.graph.batch_size))
                carriers = find(graph, batches.products)
            like = problem.probe.expand(graph.batch_size, *problem.input_shape)
            opened = open_gates(graph, carriers, like, torch.Generator().manual_seed(0))
            batches = replace(
                batches, graph=graph, carriers=carriers, watch=Watch(opened=opened), dtype=torch.float64, start=None
            )
            gates: GateSource = "unit"
            try:
                first = _read(batches, like, layers, gates)
            except UnsupportedOperatorError:  # an order has no gate that is open for all
                gates = "data"
                first = _read(batches, like, layers, gates)
        drawn = draws_apart(graph, carriers)
        chosen = drawn or gates == "data" or examples_choose(graph, carriers)
        return cls(batches, gates, layers, chosen, drawn, first)

    @property
    def opens(self) -> bool:
        """Tell whether gates are open that the examples close."""
        return bool(self.batches.watch.opened)

    def __iter__(self) -> Iterator[Program]:
        if not self.chosen:
            yield self.first
            return
        for k, (batch, _) in enumerate(self.batches.problem.padded_batches(self.batches.graph.batch_size)):
            yield _read(self.batches, batch, self.layers, self.gates, k)


def _read(batches: Batches, batch: torch.Tensor, layers: bool, gates: GateSource, k: int = 0) -> Program:
    """Trace a batch, with the random numbers that its energies meet."""
    selected, carriers, watch = {*batches.problem.params}, batches.carriers, batches.watch
    with seeded(k, batch.device):
        return trace(
            batches.graph, batch, gates, selected, layers=layers, weights=False, carriers=carriers, watch=watch
        )
