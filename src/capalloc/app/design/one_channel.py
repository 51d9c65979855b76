"""The Markov rule for a design, with one channel that stands for all (docs/theory.md, section 4).

Its steps are the maps of `propagate`, its sweeps those of a program without labels and exponents, which would take
three to seven times as long. Index convention: energies are (1, 1, *positions), taps (1, 1, *kernel). e is the energy
that arrives at a unit, g = dE/de, and e r the capacity that it carries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from capalloc._energy.maps import ConvolutionMap
from capalloc._linalg.aliases import Array
from capalloc._runtime.arguments import blamed
from capalloc.app.design.stack import Design

Item = TypeVar("Item")


@dataclass(frozen=True)
class ChannelLayer:
    """A convolution whose taps all pass the same path energy, padded to keep the grid but for its stride.

    Args:
        convolution: its map.
        share: path energy that each tap passes.
        along: the same map along one of two axes, (positions above, below), which takes half the time; unused for one.
        params: weights of each tap.
        channels: those that it writes and that can be rescaled; none at the outputs.
        skip: whether what it reads is added to it.

    """

    convolution: ConvolutionMap
    share: Tensor
    along: Tensor
    params: int
    channels: int
    skip: bool = False

    def branch(self, energy: Tensor) -> Tensor:
        """Energy that the convolution gives."""
        if energy.ndim == 3:
            return self.convolution(energy, self.share)
        return self.along @ energy @ self.along.mT

    def branch_adjoint(self, g: Tensor, below: Tensor) -> Tensor:
        """Adjoint of `branch`, which reads energies shaped as `below`."""
        if g.ndim == 3:
            return self.convolution.pull(g, [below, self.share], [0])[0]
        return self.along.mT @ g @ self.along

    def crossed(self, energy: Tensor, g: Tensor) -> Tensor:
        """dE/d share of every tap."""
        return self.convolution.pull(g, [energy, self.share], [1])[0]

    def brought(self, crossed: Tensor, energy: Tensor, g: Tensor) -> Tensor:
        """r of what is read: every parameter brings one unit of capacity, spread over the paths that use it."""
        each = torch.where(crossed > 0, self.params / crossed, 0.0)
        return self.convolution.pull(g, [energy, each], [0])[0]


def channel_layers(design: Design, gain: float) -> list[ChannelLayer]:
    """Stem, layers and head, inputs first; `gain` is A / B of the activation, what a layer does to path energy."""
    width, eps, size = design.width, design.branch or 0.0, design.size
    layers: list[ChannelLayer] = []

    def append(kernel: int, dilation: int, stride: int, energy: float, params: int, channels: int, skip: bool) -> None:
        nonlocal size
        strides, reach, dilations = ((n,) * design.ndim for n in (stride, dilation * (kernel // 2), dilation))
        share = torch.full((1, 1, *[kernel] * design.ndim), energy / kernel**design.ndim, dtype=torch.float64)
        along = _band(kernel, dilation, stride, size) * (energy**0.5 / kernel) if design.ndim == 2 else share
        layers.append(ChannelLayer(ConvolutionMap(strides, reach, dilations), share, along, params, channels, skip))
        size = -(-size // stride)

    append(design.kernel, 1, design.strides[0], 1.0, width, width, False)
    for dilation, stride, skip in zip(design.dilations, design.strides[1:], design.skips, strict=True):
        append(design.kernel, dilation, stride, gain * eps**2 if skip else gain, width**2, width, skip)
    append(1, 1, 1, gain, width, 0, False)
    return layers


def _band(kernel: int, dilation: int, stride: int, below: int) -> Tensor:
    """1 where a position above reads one below, (above, below)."""
    above, reach = -(-below // stride), dilation * (kernel // 2)
    padded = torch.zeros(above, below + 2 * reach, dtype=torch.float64)
    padded.as_strided((above, kernel), (padded.shape[1] + stride, dilation)).fill_(1)
    return padded[:, reach : reach + below].contiguous()


@dataclass(frozen=True)
class ChannelFlow:
    """Path energy and capacity of the central output position: maps and counts as in `Reading`."""

    law: Array
    capacity: Array
    rates: Array  # of all layers, stem and head included
    alive: int
    symmetries: int


def channel_flow(design: Design, gain: float, between: Callable[[], Any] = lambda: None) -> ChannelFlow:
    """Law, capacity and rates of a design on inputs of one energy; `gain` as in `channel_layers`.

    `between` is called before every layer of each sweep, and may raise.
    """
    layers = channel_layers(design, gain)
    energies, rates = [torch.ones(1, 1, *(design.size,) * design.ndim, dtype=torch.float64)], []
    for layer in _watched(layers, between):
        branch = layer.branch(energies[-1])
        rates.append(float(branch.sum() / energies[-1].sum()) if layer.skip else np.inf)
        energies.append(branch + energies[-1] if layer.skip else branch)
    g = torch.zeros_like(energies[-1])
    g[(0, 0, *(n // 2 for n in g.shape[2:]))] = 1.0
    r = torch.zeros_like(g)
    passed = []  # outputs first
    for layer, below in _watched(zip(reversed(layers), reversed(energies[:-1]), strict=True), between):
        passed.append((layer, below, g, layer.crossed(below, g)))
        pulled = layer.branch_adjoint(g, below)
        g = pulled + g if layer.skip else pulled
    through = [float((layer.share * crossed).sum()) for layer, _, _, crossed in passed]
    losses = _losses(layers, through[::-1])[::-1]
    for (layer, below, above, crossed), loss in _watched(zip(passed, losses, strict=True), between):
        pulled = layer.branch_adjoint(torch.add(r, above, alpha=-loss), below) + layer.brought(crossed, below, above)
        r = pulled + r if layer.skip else pulled
    return ChannelFlow(
        law=(g / g.sum())[0, 0].numpy(),
        capacity=r.clamp(min=0)[0, 0].numpy(),  # rounding leaves zeros at -1e-17 or so
        rates=np.array(rates),
        alive=sum(int(crossed.count_nonzero()) * layer.params for layer, _, _, crossed in passed),
        symmetries=sum(layer.channels for layer in layers if not layer.skip),
    )


def _watched(items: Iterable[Item], between: Callable[[], Any]) -> Iterator[Item]:
    for item in items:
        with blamed("between"):
            between()
        yield item


def _losses(layers: Sequence[ChannelLayer], through: Sequence[float]) -> list[float]:
    """The capacity that symmetries take at every layer, per path energy that it writes.

    The channels of a stream rescale together: one symmetry each, shared by all that writes to the stream.
    """
    streams = np.cumsum([not layer.skip for layer in layers]) - 1
    whole = np.bincount(streams, through)
    return [layer.channels / whole[stream] for layer, stream in zip(layers, streams, strict=True)]


def theoretical_interval(design: Design) -> tuple[int, int]:
    """Start and stop of the smallest interval that holds the theoretical field within the input, on any axis."""
    sizes = [design.size]
    for stride in design.strides:
        sizes.append(-(-sizes[-1] // stride))
    seen = np.array([sizes[-1] // 2])
    taps = np.arange(design.kernel) - design.kernel // 2
    for size, stride, dilation in reversed(list(zip(sizes, design.strides, (1, *design.dilations), strict=False))):
        places = (seen * stride)[:, None] + taps * dilation
        seen = np.unique(places[(places >= 0) & (places < size)])
    return int(seen[0]), int(seen[-1]) + 1
