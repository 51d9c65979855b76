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
from torch.nn import functional as F

from capalloc._energy.maps import ConvolutionMap
from capalloc._linalg.aliases import Array
from capalloc._runtime.arguments import blamed
from capalloc.app.design.stack import Design

Item = TypeVar("Item")


@dataclass(frozen=True)
class Resampling:
    """Positions repeated, averaged, or the largest of them taken: no parameters."""

    along: Tensor  # energy that goes from each position to each along an axis, (above, below)
    skip: int = 0  # as in `ChannelConvolution`

    def __call__(self, energy: Tensor) -> Tensor:
        """Energy above."""
        return energy @ self.along.mT if energy.ndim == 3 else self.along @ energy @ self.along.mT

    def adjoint(self, g: Tensor, below: Tensor) -> Tensor:
        """Adjoint of the step, which reads energies shaped as `below`."""
        return g @ self.along if below.ndim == 3 else self.along.mT @ g @ self.along


@dataclass(frozen=True)
class ChannelConvolution:
    """A convolution whose taps all pass the same path energy, padded to keep the grid but for its stride.

    Args:
        convolution: its map.
        share: path energy that each tap passes.
        along: the same map along one of two axes, (positions above, below), which takes half the time; unused for one.
        params: weights of each tap.
        channels: those that it writes and that can be rescaled; none at the outputs.
        stream: number of what these belong to; streams rescale as a whole.
        beyond: positions at the end that the map gives too many, where nothing is padded there.
        skip: so many steps back, this one included, what is read is added to what this one writes; 0 for no skip.

    """

    convolution: ConvolutionMap
    share: Tensor
    along: Tensor
    params: int
    channels: int
    stream: int
    beyond: int = 0
    skip: int = 0

    def __call__(self, energy: Tensor) -> Tensor:
        """Energy above."""
        if energy.ndim == 3:
            whole = self.convolution(energy, self.share)
            return whole[..., : whole.shape[-1] - self.beyond]
        return self.along @ energy @ self.along.mT

    def adjoint(self, g: Tensor, below: Tensor) -> Tensor:
        """Adjoint of the step, which reads energies shaped as `below`."""
        if g.ndim == 3:
            return self.convolution.pull(self._whole(g), [below, self.share], [0])[0]
        return self.along.mT @ g @ self.along

    def crossed(self, energy: Tensor, g: Tensor) -> Tensor:
        """dE/d share of every tap."""
        return self.convolution.pull(self._whole(g), [energy, self.share], [1])[0]

    def brought(self, crossed: Tensor, energy: Tensor, g: Tensor) -> Tensor:
        """r of what is read: every parameter brings one unit of capacity, spread over the paths that use it."""
        each = torch.where(crossed > 0, self.params / crossed, 0.0)
        return self.convolution.pull(self._whole(g), [energy, each], [0])[0]

    def _whole(self, g: Tensor) -> Tensor:
        return F.pad(g, (0, self.beyond)) if self.beyond else g


ChannelStep = Resampling | ChannelConvolution


def channel_steps(design: Design, gain: float) -> list[ChannelStep]:
    """Stem, layers and head, inputs first; `gain` is A / B of the activation, what a layer does to path energy.

    The scale of a norm takes as much capacity for its symmetry as its parameters bring, at the same places: it is left
    out, and so are biases, whose capacity is the constant's.
    """
    eps = design.branch or 0.0
    skips, deviations = (False, *design.skips), (1.0, *design.deviations)
    steps: list[ChannelStep] = []
    main = count = 0  # the stream that layers read, and how many there are
    for k, (stride, repeat, dilation) in enumerate(
        zip(design.strides, design.repeats, (1, *design.dilations), strict=True)
    ):
        inputs, outputs = design.widths[k], design.widths[k + 1]
        energy = gain if k else 1.0
        if skips[k]:
            energy *= (eps if design.norm == "none" else eps / deviations[k]) ** 2
        if repeat > 1:
            steps.append(Resampling(torch.eye(design.sizes[k], dtype=torch.float64).repeat_interleave(repeat, 0)))
        size, moved = design.sizes[k] * repeat, design.conv_strides[k]
        split = design.depthwise and k > 0
        if design.maxima and stride > 1:
            steps.append(Resampling(_pooled(size, stride, 1 / stride)))
            size //= stride
        if split:
            count += 1
            steps.append(_convolution(design, size, energy, inputs, inputs, count, dilation, moved))
        if not skips[k]:
            count += 1
            main = count
        last = (1, 1, 1) if split else (dilation, moved, design.kernel)
        size = -(-size // moved) if split else size
        skip = 1 + split if skips[k] else 0
        energy = 1.0 if split else energy
        steps.append(_convolution(design, size, energy, inputs * outputs, outputs, main, *last, skip=skip))
        if design.averages and stride > 1:
            steps.append(Resampling(_pooled(size, stride, 1 / stride**2)))
    return [*steps, _convolution(design, design.sizes[-1], gain, design.widths[-1], 0, count + 1, kernel=1)]


def _convolution(
    design: Design,
    size: int,
    energy: float,
    params: int,
    channels: int,
    stream: int,
    dilation: int = 1,
    stride: int = 1,
    kernel: int = 0,
    skip: int = 0,
) -> ChannelConvolution:
    kernel = kernel or design.kernel
    reach = dilation * (kernel // 2) * (2 if design.causal else 1)
    share = torch.full((1, 1, *[kernel] * design.ndim), energy / kernel**design.ndim, dtype=torch.float64)
    along = _band(kernel, dilation, stride, size) * (energy**0.5 / kernel) if design.ndim == 2 else share
    strides, padding, dilations = ((n,) * design.ndim for n in (stride, reach, dilation))
    whole = (size + 2 * reach - (kernel - 1) * dilation - 1) // stride + 1
    beyond = whole - -(-size // stride)
    found = ConvolutionMap(strides, padding, dilations)
    return ChannelConvolution(found, share, along, params, channels, stream, beyond, skip)


def _band(kernel: int, dilation: int, stride: int, below: int) -> Tensor:
    """1 where a position above reads one below, (above, below)."""
    above, reach = -(-below // stride), dilation * (kernel // 2)
    padded = torch.zeros(above, below + 2 * reach, dtype=torch.float64)
    padded.as_strided((above, kernel), (padded.shape[1] + stride, dilation)).fill_(1)
    return padded[:, reach : reach + below].contiguous()


def _pooled(below: int, window: int, energy: float) -> Tensor:
    """Energy from each position to the window that holds it, (below // window, below)."""
    whole = torch.eye(below // window, dtype=torch.float64).repeat_interleave(window, 1) * energy
    return F.pad(whole, (0, below - whole.shape[1]))


@dataclass(frozen=True)
class ChannelFlow:
    """Path energy and capacity of the central output position: maps and counts as in `Reading`."""

    law: Array
    capacity: Array
    rates: Array  # of all layers, stem and head included
    alive: int  # weights
    symmetries: int  # of streams and of what is within branches


def channel_flow(design: Design, gain: float, between: Callable[[], Any]) -> ChannelFlow:
    """Law, capacity and rates of a design on inputs of one energy; `gain` as in `channel_steps`.

    `between` is called before every layer of each sweep, and may raise.
    """
    steps, rates = channel_steps(design, gain), []
    energies = [torch.ones(1, 1, *(design.size,) * design.ndim, dtype=torch.float64)]
    for k, step in _watched(enumerate(steps), between):
        found = step(energies[-1])
        if step.skip:
            rates.append(float(found.sum() / energies[k + 1 - step.skip].sum()))
            found = found + energies[k + 1 - step.skip]
        energies.append(found)
    top = torch.zeros_like(energies.pop())
    top[(0, 0, *(position(design) for _ in top.shape[2:]))] = 1.0
    above, law = _downward(steps, top, lambda k, g: steps[k].adjoint(g, energies[k]), between)
    weighing = {k: step for k, step in enumerate(steps) if isinstance(step, ChannelConvolution)}
    crossed = {k: step.crossed(energies[k], above[k]) for k, step in weighing.items()}
    streams = np.zeros(1 + max(step.stream for step in weighing.values()))
    for k, step in weighing.items():
        streams[step.stream] += float((step.share * crossed[k]).sum())

    def pull(k: int, r: Tensor) -> Tensor:
        step, g, below = steps[k], above[k], energies[k]
        if isinstance(step, Resampling):
            return step.adjoint(r, below)
        # The channels of a stream rescale together: one symmetry each, shared by all that writes to the stream.
        lost = torch.add(r, g, alpha=-step.channels / streams[step.stream])
        return step.adjoint(lost, below) + step.brought(crossed[k], below, g)

    _, capacity = _downward(steps, torch.zeros_like(top), pull, between)
    rate = iter(rates)
    return ChannelFlow(
        law=(law / law.sum())[0, 0].numpy(),
        capacity=capacity.clamp(min=0)[0, 0].numpy(),  # rounding leaves zeros at -1e-17 or so
        rates=np.array([np.inf, *(next(rate) if skip else np.inf for skip in design.skips), np.inf]),
        alive=sum(int(crossed[k].count_nonzero()) * step.params for k, step in weighing.items()),
        symmetries=sum({step.stream: step.channels for step in weighing.values()}.values()),
    )


def position(design: Design) -> int:
    """The output position that is read, on every axis: the last of a causal stack, else the central one."""
    size = design.sizes[-1]
    return size - 1 if design.causal else size // 2


def _downward(
    steps: Sequence[ChannelStep], top: Tensor, pull: Callable[[int, Tensor], Tensor], between: Callable[[], Any]
) -> tuple[list[Tensor], Tensor]:
    """Bring `top` down step by step by `pull`, the last first: what every step writes has, and what the inputs have."""
    found, passed, around = top, [], dict[int, Tensor]()
    for k in _watched(reversed(range(len(steps))), between):
        passed.append(found)
        if steps[k].skip:
            around[k + 1 - steps[k].skip] = found
        found = pull(k, found)
        if k in around:
            found = found + around.pop(k)
    return passed[::-1], found


def _watched(items: Iterable[Item], between: Callable[[], Any]) -> Iterator[Item]:
    for item in items:
        with blamed("between"):
            between()
        yield item


def theoretical_interval(design: Design) -> tuple[int, int]:
    """Start and stop of the smallest interval that holds the theoretical field within the input, on any axis."""
    seen = np.array([position(design)])
    for k in reversed(range(design.depth + 1)):
        whole = design.sizes[k] * design.repeats[k]
        seen = _read(design, k, seen, whole)
        seen = seen[(seen >= 0) & (seen < whole)] // design.repeats[k]
        seen = np.unique(seen)
    return int(seen[0]), int(seen[-1]) + 1


def extent(design: Design) -> int:
    """Size of the theoretical field on an axis without borders.

    Without repeats, averages and maxima it is 1 + sum_l (kernel - 1) dilation_l x strides below.
    """
    ends = np.zeros(2, int)
    for k in reversed(range(design.depth + 1)):
        ends = _read(design, k, ends)[[0, -1]] // design.repeats[k]
    return int(ends[1] - ends[0]) + 1


def _read(design: Design, layer: int, seen: Array, whole: int | None = None) -> Array:
    """Positions, in order, that a layer reads for those that it writes; of a repeated grid where it repeats.

    Of a grid of `whole` positions maxima are taken as far as it is full; by default it has no end.
    """
    stride, moved, dilation = design.strides[layer], design.conv_strides[layer], (1, *design.dilations)[layer]
    windows = np.arange(stride)
    if design.averages:
        seen = (seen[:, None] * stride + windows).ravel()
    taps = np.arange(design.kernel) - (design.kernel - 1 if design.causal else design.kernel // 2)
    seen = np.unique((seen * moved)[:, None] + taps * dilation)
    if not design.maxima:
        return seen
    seen = seen if whole is None else seen[(seen >= 0) & (seen < whole // stride)]
    return (seen[:, None] * stride + windows).ravel()
