"""What decouplings and the law of paths make of the gradients: correlation by place, and the shattering index.

The correlation of the gradients at two inputs is the path average of the gate correlations met on the way
(docs/theory.md, section 6): the backward sweep of path energy with every gate's energy times its correlation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from capalloc.decoupling.sites import by_example
from capalloc.energy.paths import Energies, adjoint
from capalloc.energy.program import Program
from capalloc.energy.rates import Flow
from capalloc.shattering.measure import Observer


@dataclass(frozen=True)
class Prediction:
    """The energy network of some points, swept from the outputs."""

    program: Program
    observer: Observer
    plain: Flow
    weights: Mapping[Node, Tensor]  # mean path energy that each unit of a gate would pass if it were open

    @classmethod
    def of(cls, program: Program, observer: Observer) -> Prediction:
        """Every output with energy 1."""
        plain = Flow.of(program, torch.ones_like(program.values[program.output]))
        weights = {gate: _weights(plain, gate, observer) for gate in observer.gates}
        return cls(program, observer, plain, {gate: w for gate, w in weights.items() if w is not None})

    def crossing(self) -> Tensor:
        """Probability that a path crosses each gate."""
        return torch.tensor([self.plain.crossing(gate) for gate in self.observer.gates], dtype=torch.float64)

    def correlations(self, kept: Tensor) -> Tensor:
        """Correlation of the gradients at the places, if gate k keeps the correlation kept[k]."""
        pairs = zip(self.observer.gates, kept, strict=True)
        damping = {self.plain.slot(gate): float(c) for gate, c in pairs if not bool(torch.isnan(c))}
        slots = [self.plain.slot(place.node) for place in self.observer.places]
        seed = torch.ones_like(self.program.values[self.program.output])
        damped = adjoint(self.program, {self.program.output: seed}, set(slots), damping)
        return torch.tensor([_ratio(damped, self.plain.down, slot) for slot in slots], dtype=torch.float64)


def _weights(plain: Flow, gate: Node, observer: Observer) -> Tensor | None:
    above, below = plain.slot(gate), plain.slot(observer.entry(gate))
    if above not in plain.down or below not in plain.up:
        return None
    down, up = plain.down[above], plain.up[below]
    if down.shape != up.shape or gate not in observer.axes:
        return None
    found = by_example(down * up, observer.axes[gate], observer.trails.graph.batch_size).mean(0)
    return found.to(torch.float64) if float(found.sum()) > 0 else None


def _ratio(damped: Energies, plain: Energies, slot: int) -> float:
    whole = float(plain[slot].sum()) if slot in plain else 0.0
    return float(damped[slot].sum()) / whole if whole > 0 else float("nan")
