"""Gradients of wide random networks at a few inputs, for the shattering study.

Index convention: streams are (networks, units, nets x points): the same matrices serve every net (a family at one
depth), and nets stand in order of falling depth, so that those that reach a layer come first.
A block keeps the stream's unit variance, h <- sqrt(1 - Q) h + sqrt(Q / B(1)) W phi(h) with W of variance 1 / units.
For ReLU, Q = lambda / (1 + lambda) and this is h + sqrt(lambda) W relu(h), W of variance 2 / units, up to one factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from capalloc._decoupling import quadrature
from capalloc._depth.shattering_law import crossing, family_rates
from capalloc._operators.calls import slope
from capalloc.gates import gaussian_gate_moment

#: Weights of a batch of networks held at once, in numbers.
WEIGHTS = 2**22


Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Net:
    """A family at one depth."""

    family: str
    depth: int


def factors(nets: Sequence[Net], activation: nn.Module) -> list[Factors]:
    """Of skip and branch, sqrt(1 - Q) and sqrt(Q / B(1)), in every layer, for the nets that reach it."""
    square = quadrature.mean_square(activation, 1.0, ())  # B(1) = E phi(z)^2
    gain = square / float(gaussian_gate_moment(activation, 1.0))
    shares = [crossing(family_rates(net.family, net.depth) * gain) for net in nets]
    by_layer = [torch.tensor([q[level] for q in shares if len(q) > level]) for level in range(nets[0].depth)]
    return [((1 - share).sqrt(), (share / square).sqrt()) for share in by_layer]


@dataclass(frozen=True)
class Stack:
    """Random matrices of a batch of networks, and the nets that share them."""

    weights: Sequence[Tensor]  # of every layer: (networks, units, units), variance 1 / units
    factors: Sequence[Factors]
    activation: nn.Module

    def gradients(self, inputs: Tensor, readout: Tensor) -> Tensor:
        """Of the scalar output readout . h at every input.

        Args:
            inputs: (networks, units, points), of unit variance.
            readout: (networks, units).

        Returns:
            Gradients, (networks, units, nets, points).

        """
        networks, units, points = inputs.shape
        h = inputs.repeat(1, 1, len(self.factors[0][0]))
        blocks, gates = list(self._blocks(points, inputs.dtype)), []
        for weight, skip, branch in blocks:
            here = h[..., : len(skip)]
            gates.append(slope(self.activation, here))
            h = torch.cat([skip * here + branch * (weight @ self.activation(here)), h[..., len(skip) :]], 2)
        g = readout[..., None].repeat(1, 1, h.shape[2])
        for (weight, skip, branch), gate in zip(reversed(blocks), reversed(gates), strict=True):
            here = g[..., : len(skip)]
            g = torch.cat([skip * here + branch * gate * (weight.mT @ here), g[..., len(skip) :]], 2)
        return g.reshape(networks, units, -1, points)

    def _blocks(self, points: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The matrix of every layer, and the factors for every column that reaches it."""
        for weight, (skip, branch) in zip(self.weights, self.factors, strict=True):
            yield weight, skip.to(dtype).repeat_interleave(points), branch.to(dtype).repeat_interleave(points)


def products(
    nets: Sequence[Net],
    units: int,
    networks: int,
    mixing: Tensor,
    activation: nn.Module,
    generator: torch.Generator,
    weights_at_once: int = WEIGHTS,
) -> Tensor:
    """Inner products of the gradients at every two points, for every random network.

    Args:
        nets: which families at which depths.
        units: width of every layer and of the input.
        networks: how many to draw.
        mixing: (sources, points); the points are mixtures of independent Gaussian inputs.
        activation: of every block.
        generator: of weights, inputs and readouts.
        weights_at_once: of a batch of networks, in numbers.

    Returns:
        <g(x_p), g(x_p')>, (networks, nets, points, points), in float64, nets in the order given.

    """
    order = sorted(range(len(nets)), key=lambda k: -nets[k].depth)
    ordered = [nets[k] for k in order]
    batch = max(1, weights_at_once // (units**2 * ordered[0].depth))
    by_layer = factors(ordered, activation)
    found = []
    for start in range(0, networks, batch):
        number = min(batch, networks - start)
        draw = lambda *shape, number=number: torch.randn(number, *shape, generator=generator)  # noqa: E731
        weights = [draw(units, units).div_(math.sqrt(units)) for _ in range(ordered[0].depth)]
        inputs = draw(units, len(mixing)) @ mixing
        g = Stack(weights, by_layer, activation).gradients(inputs, draw(units)).double()
        found.append(torch.einsum("bunp,bunq->bnpq", g, g))
    return torch.cat(found)[:, np.argsort(order)]
