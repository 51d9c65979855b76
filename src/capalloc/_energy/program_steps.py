"""The steps of an energy network, and what is known of those with weights and of those that mix positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capalloc._energy.maps import EnergyMap
from capalloc._energy.symmetries.labels import connected

Values = Sequence[Tensor] | Mapping[int, Tensor]  # by slot


@dataclass(frozen=True)
class Step:
    """out = scale * map(arguments), linear in the signals together and in each parameter."""

    map: EnergyMap
    args: tuple[int, ...]
    factors: tuple[float, ...]  # brings the signals to one exponent
    scale: float
    out: int
    moves: bool  # whether it only moves data

    @property
    def plain(self) -> Step:
        """The same for numbers that are all on one scale."""
        return replace(self, factors=(1.0,) * len(self.args), scale=1.0)

    def run(self, args: Sequence[Tensor]) -> Tensor:
        """Evaluate the step on other mantissas than its own."""
        return times(self.map(*(times(a, f) for a, f in zip(args, self.factors, strict=True))), self.scale)

    def pull(
        self, cotangent: Tensor, values: Values, wanted: Sequence[int], instead: Mapping[int, Tensor]
    ) -> list[Tensor]:
        """Give cotangents of the slots `wanted`, at `values`, or `instead` where it has them."""
        args = [instead.get(slot, values[slot]) for slot in self.args]
        if not getattr(self.map, "by_entry", False):  # which has no weight, whose cotangent alone reads the signals
            args = [times(a, f) for a, f in zip(args, self.factors, strict=True)]
        positions = [k for k, slot in enumerate(self.args) if slot in wanted]
        pulled: dict[int, Tensor] = {}
        own = getattr(self.map, "sources", None) if any(slot in instead for slot in self.args) else None
        for k, found in zip(
            positions, (own or self.map).pull(times(cotangent, self.scale), args, positions), strict=True
        ):
            slot, scaled = self.args[k], times(found, self.factors[k])
            pulled[slot] = pulled[slot] + scaled if slot in pulled else scaled
        return [pulled[slot] for slot in wanted]


@dataclass(frozen=True)
class Edge:
    """Free parameters between channels: step `step` reads channels `read` and writes channels `written`."""

    step: int
    weight: int  # slot; `read` and `written` are broadcastable to its shape
    read: Tensor
    written: Tensor
    out_labels: Tensor  # broadcastable to the step's output
    others: tuple[tuple[Tensor, Tensor], ...] = ()  # (read, written) for each further class of positions
    again: bool = False  # a use that another edge stands for, seen a second time by the constant's own paths
    by_signal: bool = False  # a channel's energy is read off the output: no sum over its weights, or a longer one

    @property
    def sides(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Give (read, written) for every class of positions that the weight serves."""
        return ((self.read, self.written), *self.others)


@dataclass(frozen=True)
class PartialMixture:
    """A fixed map that mixes some positions into each output, and ties those it mixes.

    A tie by outputs that no path leaves is none: the count of symmetries is then a lower bound.
    """

    slot: int  # of its output
    enters: Tensor  # (positions, outputs): which position enters which output
    axis: int  # of the outputs

    def live(self, adjoint: Tensor) -> Tensor:
        """Return which outputs paths leave, (outputs,)."""
        return (adjoint != 0).movedim(self.axis, -1).flatten(0, -2).any(0)

    def tied_by(self, live: Tensor) -> bool:
        """Tell whether the outputs that paths leave tie all that is tied."""
        groups = [connected(self.enters[:, kept])[0] for kept in (live, torch.ones_like(live))]
        return len(torch.stack(groups).unique(dim=1).T) == len(groups[1].unique())


def times(value: Tensor, factor: float) -> Tensor:
    return value if factor == 1.0 else value * factor
