"""The first layer on correlated inputs, taken whole: x = mu + A z, and energies (W A)_ji^2 from z_i to unit j.

W is the first map with weights and A the root of the covariance: no gate stands between them. Weights keep their own
units of capacity at their own inputs: the unit of a weight that reads x_k goes to z_k, which for a dense layer is
exact, since W A has as many free entries as W. Index convention: through (units, inputs) of one example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._energy.maps import EnergyMap, Pulled
from capalloc._energy.paths import replay
from capalloc._energy.program import Energy, Program
from capalloc._energy.symmetries.labels import GROUND

#: Numbers in the map of a first layer, units times inputs, above which it is refused.
MOST_ENTRIES = 2**27


@dataclass(frozen=True)
class OwnInputs:
    """The plain map with its outputs brought to the energies of whole products, as a map from the inputs."""

    plain: EnergyMap
    factors: Tensor
    signal: Tensor  # energies that the plain map reads
    place: Tensor  # the input that each entry of one example's signal is
    start: Tensor  # energies of the inputs

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        pulled = self.plain.pull(cotangent * self.factors, [self.signal, *args[1:]], wanted)
        return [self._at_inputs(part) if k == 0 else part for k, part in zip(wanted, pulled, strict=True)]

    def _at_inputs(self, cotangent: Tensor) -> Tensor:
        rows = (cotangent * self.signal).reshape(-1, len(self.place))
        found = rows.new_zeros(len(rows), self.start[0].numel()).index_add(1, self.place, rows)
        return (found / self.start.reshape(found.shape)).reshape(self.start.shape)


@dataclass(frozen=True)
class Mixed:
    """Energies of whole products from the inputs; `sources` says where weights release their own units."""

    through: Tensor
    shape: tuple[int, ...]  # of the result
    sources: OwnInputs | None = None  # None for a map without weights

    def __call__(self, *args: Tensor) -> Tensor:
        return (args[0].reshape(-1, self.through.shape[1]) @ self.through.T).reshape(self.shape)

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> Pulled:
        pulled = []
        for k in wanted:
            if k == 0:
                rows = cotangent.expand(self.shape).reshape(-1, self.through.shape[0])
                pulled.append((rows @ self.through).reshape(args[0].shape))
            else:
                assert self.sources is not None
                pulled += self.sources.pull(cotangent, args, [k])
        return pulled


def whole(program: Program, columns: Tensor, signal: Energy) -> tuple[Mixed, Energy]:
    """Make the map of a fixed stretch, from all inputs to a signal.

    Args:
        program: the program so far.
        columns: what each z_i adds to the result, (inputs, *result) of one example.
        signal: energies of what the stretch makes.

    Raises:
        ValueError: the map would be too large.

    """
    n = len(columns)
    squares = columns.reshape(n, -1).to(program.dtype).square()
    if squares.numel() > MOST_ENTRIES:
        raise ValueError(
            f"a metric with covariances takes the first layer as one map of {squares.shape[1]} units x {n} inputs, "
            f"more than {MOST_ENTRIES} numbers: use metric='variance'"
        )
    start = program.values[program.input]
    energies = start[0].reshape(-1) * 2.0 ** program.exponents[program.input]
    through = torch.where(energies > 0, squares.T / energies, 0.0)
    return Mixed(through, signal.shape), Energy(program.input, tuple(start.shape), torch.tensor(GROUND))


def mixed(program: Program, columns: Tensor, plain: EnergyMap, signal: Energy, weight: Energy) -> tuple[Mixed, Energy]:
    """Make the map of a first layer with weights, and give the inputs that it reads.

    Args:
        program: the program so far.
        columns: what each z_i adds to the result, (inputs, *result) of one example.
        plain: the map that the rule would take.
        signal: energies that it would read, each entry those of one input.
        weight: its weight.

    Raises:
        ValueError: the signal sums inputs, or the map would be too large.

    """
    values, start = program.values[signal.slot], program.values[program.input]
    each = plain(values, program.values[weight.slot])
    found, inputs = whole(program, columns, Energy(signal.slot, tuple(each.shape), signal.labels))
    # The step takes its result for one at the exponents of the inputs and the weight.
    through = found.through * 2.0 ** -program.exponents[weight.slot]
    made = Mixed(through, found.shape)(start)
    factors = torch.where(each > 0, made / each, 0.0)
    own = OwnInputs(plain, factors, values, _places(program, signal), torch.where(start > 0, start, 1.0))
    return Mixed(through, found.shape, own), inputs


def _places(program: Program, signal: Energy) -> Tensor:
    """The input that each entry of one example's signal is, 0 for none, from energies that name it."""
    start = program.values[program.input]
    names = torch.arange(1.0, start[0].numel() + 1, dtype=torch.float64, device=start.device).reshape(start.shape[1:])
    zero = torch.zeros_like(program.values[program.constant])

    def shown(energies: Tensor) -> Tensor:
        leaves = {program.input: energies.expand(start.shape), program.constant: zero.double()}
        made = replay(program, leaves, [signal.slot])[signal.slot]
        return made.reshape(len(start), -1)[0]

    one, first, second = (shown(names**power) for power in range(3))
    place = torch.where(one > 0, first / one, 1.0)
    if bool((torch.where(one > 0, second / one, 1.0) - place.square() > 1e-3).any()):
        raise ValueError(
            "a metric with covariances needs a first layer with weights that reads the inputs as they are, in any "
            "order and on any scale; this model sums some before: use metric='variance'"
        )
    return place.round().long() - 1
