"""Gradients as decouplings and the law of paths predict them: correlation by place, and the shattering index.

The correlation of the gradients at two inputs is the path average of the gate correlations met on the way
(docs/theory.md, section 6): the backward sweep of path energy with every gate's energy times its correlation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Node

from capalloc._decoupling.sites import by_example
from capalloc._depth.observe_gradients import Observer
from capalloc._energy.batches import Batches
from capalloc._energy.markov import FloatRangeError
from capalloc._energy.paths import adjoint
from capalloc._energy.rates import NotedEnergies

#: Correlations below which float32 may have lost paths on the way: its least number is 2**-126.
LEAST_OF_FLOAT32 = 2.0**-60


@dataclass(frozen=True)
class Prediction:
    """The energy networks of some points, swept from the outputs, in batches that count by their energy."""

    observer: Observer
    flows: tuple[NotedEnergies, ...]
    seeds: tuple[Tensor, ...]
    weights: Mapping[Node, Tensor]  # path energy that each unit of a gate would pass if it were open

    @classmethod
    def of(cls, batches: Batches, observer: Observer) -> Prediction:
        """Every output of every example with energy 1."""
        pairs = list(batches())
        flows = tuple(NotedEnergies.of(program, seed) for program, seed in pairs)
        found = cls(observer, flows, tuple(seed for _, seed in pairs), {})
        return replace(found, weights=dict(found._weights()))

    def crossing(self) -> Tensor:
        """Probability that a path crosses each gate."""
        wholes = torch.tensor([self._scale(flow) * flow.whole for flow in self.flows], dtype=torch.float64)
        each = [[flow.crossing(gate) for gate in self.observer.gates] for flow in self.flows]
        return wholes @ torch.tensor(each, dtype=torch.float64) / wholes.sum()

    def correlations(self, kept: Tensor, num_places: int | None = None) -> Tensor:
        """Correlation of the gradients at the places, or the first ones, if gate k keeps the correlation kept[k].

        Raises:
            FloatRangeError: float32 may have lost paths that are damped by many gates.

        """
        places = self.observer.places[:num_places]
        sums = torch.zeros(2, len(places), dtype=torch.float64)
        for flow, seed in zip(self.flows, self.seeds, strict=True):
            pairs = zip(self.observer.gates, kept, strict=True)
            damping = {flow.slot(gate): float(c) for gate, c in pairs if not bool(torch.isnan(c))}
            slots = [flow.slot(place.node) for place in places]
            damped = adjoint(flow.program, {flow.program.output: seed}, set(slots), damping)
            scales = torch.tensor([self._scale(flow, place.node) for place in places], dtype=torch.float64)
            for row, energies in zip(sums, (damped, flow.down), strict=True):
                row += scales * torch.tensor([_sum(energies.get(slot)) for slot in slots], dtype=torch.float64)
        found = sums[0] / sums[1]  # NaN where no gradient comes
        single = self.flows[0].program.dtype != torch.float64
        if single and bool((found.abs() < LEAST_OF_FLOAT32).any()):
            raise FloatRangeError("correlations of gradients leave the range of float32; predict them in float64")
        return found

    def _scale(self, flow: NotedEnergies, node: Node | None = None) -> float:
        """The factor from a batch's energies, or its adjoints at a node, to those of the first batch."""

        def exponent(of: NotedEnergies) -> int:
            own = of.program.exponents
            return own[of.program.output] - (own[of.slot(node)] if node else 0)

        return float(2.0 ** (exponent(flow) - exponent(self.flows[0])))

    def _weights(self) -> Iterator[tuple[Node, Tensor]]:
        for gate in self.observer.gates:
            parts = [(self._scale(flow), _energies(flow, gate, self.observer)) for flow in self.flows]
            found = sum(scale * part for scale, part in parts if part is not None)
            if isinstance(found, Tensor) and float(found.sum()) > 0:
                yield gate, found


def _energies(flow: NotedEnergies, gate: Node, observer: Observer) -> Tensor | None:
    """Path energy by unit; None where a gate has others than what it acts on."""
    above, below = flow.slot(gate), flow.slot(observer.entry(gate))
    if above not in flow.down or below not in flow.up:
        return None
    down, up = flow.down[above], flow.up[below]
    if down.shape != up.shape or gate not in observer.axes:
        return None
    return by_example(down * up, observer.axes[gate], observer.trails.graph.batch_size).sum(0).to(torch.float64)


def _sum(energies: Tensor | None) -> float:
    return 0.0 if energies is None else float(energies.double().sum())
