"""The Markov rule for a design: sweeps of path energy with all channels alike (docs/theory.md, section 4).

The sweeps are those of `_energy/sweep.py` for one channel, every tap counting `reads` x `writes` parameters: e is
the energy that arrives at a unit from the inputs, g = dE/de its adjoint, r the adjoint that carries capacity, e r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from capalloc._linalg.aliases import Array
from capalloc.app.design.design_layers import Layer, Shape


@dataclass(frozen=True)
class Flow:
    """Path energy and capacity of the central output position.

    Args:
        law: where its paths start, summing to 1, (*positions).
        capacity: kappa of every input position, in parameters, (*positions).
        rates: energy of the branch over that of the skip, by layer; inf without one.
        alive: parameters that some path uses.
        symmetries: channels that can be rescaled, one for a whole residual stream.

    """

    law: Array
    capacity: Array
    rates: Array
    alive: int
    symmetries: int


@dataclass(frozen=True)
class _Passage:
    """One layer, what arrives at it and leaves it."""

    layer: Layer
    below: Array  # e of what it reads
    above: Array  # g of what it gives
    crossed: Array  # path energy through each tap, over gain / number of taps

    @property
    def through(self) -> float:
        """Path energy that takes the convolution."""
        return float(self.crossed.sum()) * self.layer.gain / self.crossed.size

    @property
    def params_per_tap(self) -> int:
        """Weights of each tap."""
        return self.layer.reads * self.layer.writes

    @property
    def alive(self) -> int:
        """Weights that some path uses."""
        return int(np.count_nonzero(self.crossed)) * self.params_per_tap

    def adjoint(self, r: Array) -> Array:
        """r of what is read: every parameter brings one unit of capacity, spread over the paths that use it."""
        each = np.divide(self.params_per_tap, self.crossed, out=np.zeros_like(self.crossed), where=self.crossed > 0)
        return self.layer.spread(each, self.above, self.below.shape) + self.layer.branch_adjoint(r, self.below.shape)


def flow(layers: Sequence[Layer], shape: Shape) -> Flow:
    """Law, capacity and rates of a stack of layers, inputs first, on a grid of inputs of one energy."""
    passages = _passages(layers, shape)
    losses = _losses(passages)
    r = np.zeros(passages[-1].above.shape)
    for passage, loss in zip(reversed(passages), reversed(losses), strict=True):
        skipped = r if passage.layer.skip else 0.0
        r = passage.adjoint(r - loss * passage.above) + skipped
    law = _pulled(passages[0])
    return Flow(
        law=law / law.sum(),
        capacity=r.clip(min=0),  # rounding leaves zeros at -1e-17 or so
        rates=np.array([_rate(passage) for passage in passages]),
        alive=sum(passage.alive for passage in passages),
        symmetries=sum(layer.writes for layer in layers if layer.free and not layer.skip),
    )


def _passages(layers: Sequence[Layer], shape: Shape) -> list[_Passage]:
    energies = list(accumulate(layers, _passed, initial=np.ones(shape)))
    g = np.zeros(energies[-1].shape)
    g[tuple(n // 2 for n in g.shape)] = 1.0
    found: list[_Passage] = []
    for layer, energy in zip(reversed(layers), reversed(energies[:-1]), strict=True):
        found.append(_Passage(layer, energy, g, layer.crossed(energy, g)))
        g = _pulled(found[-1])
    return found[::-1]


def _passed(energy: Array, layer: Layer) -> Array:
    return layer.branch(energy) + energy if layer.skip else layer.branch(energy)


def _pulled(passage: _Passage) -> Array:
    """g of what a layer reads."""
    pulled = passage.layer.branch_adjoint(passage.above, passage.below.shape)
    return pulled + passage.above if passage.layer.skip else pulled


def _losses(passages: Sequence[_Passage]) -> list[float]:
    """What symmetries take at every layer, per path energy that it writes.

    The channels of a stream rescale together: one symmetry each, shared by all that writes to the stream.
    """
    streams = np.cumsum([not passage.layer.skip for passage in passages]) - 1
    through = np.bincount(streams, [passage.through for passage in passages])
    return [
        passage.layer.writes / through[stream] if passage.layer.free else 0.0
        for passage, stream in zip(passages, streams, strict=True)
    ]


def _rate(passage: _Passage) -> float:
    """lambda = branch energy / skip energy, summed over positions (docs/theory.md, section 5)."""
    if not passage.layer.skip:
        return np.inf
    return float(passage.layer.branch(passage.below).sum() / passage.below.sum())
