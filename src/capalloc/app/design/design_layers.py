"""A design's layers as path energy sees them: all channels alike, so that one stands for all.

Index convention: energies are over positions, (size,) or (size, size); taps are (kernel,) or (kernel, kernel), the
middle one reading the position itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from capalloc._linalg.aliases import Array, Indices
from capalloc.app.design.stack import Design

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A convolution, with or without a skip past it, padded with zeros to keep the grid but for its stride.

    Args:
        kernel: size on every axis, odd.
        dilation: pixels between taps.
        stride: of the positions.
        reads: channels.
        writes: channels.
        gain: path energy in what the convolution gives over that in what it reads, per unit, away from borders.
        skip: whether what it reads is added to it.
        free: whether the channels that it writes can be rescaled; those of the outputs cannot.

    """

    kernel: int
    dilation: int
    stride: int
    reads: int
    writes: int
    gain: float
    skip: bool = False
    free: bool = True

    @property
    def reach(self) -> int:
        """Pixels from the middle tap to the outer ones: the padding."""
        return self.dilation * (self.kernel - 1) // 2

    def size(self, below: int) -> int:
        """Positions on an axis, for a number of them below."""
        return -(-below // self.stride)

    def branch(self, energy: Array) -> Array:
        """Energy that the convolution gives: gain times the mean over taps."""
        for _ in range(energy.ndim):  # one axis after the other, each turned to the front once
            energy = _padded(energy, self.reach)[self._read(len(energy))].sum(0).T
        given: Array = self.gain / self.kernel**energy.ndim * energy
        return given

    def branch_adjoint(self, above: Array, below: Shape) -> Array:
        """Adjoint of `branch`."""
        for size in below:
            above = self._gathered(np.broadcast_to(above, (self.kernel, *above.shape)), size).T
        pulled: Array = self.gain / self.kernel**above.ndim * above
        return pulled

    def crossed(self, energy: Array, above: Array) -> Array:
        """sum_x e(what the tap reads at x) g(x) for every tap, (*taps)."""
        padded = _padded(energy, self.reach)[self._read(len(energy))]
        if energy.ndim == 1:
            return padded @ above
        columns = self._read(energy.shape[1])
        met = above.T @ _padded(padded.T, self.reach).T  # (taps, columns above, columns below, padded)
        by_tap: Array = met[:, np.arange(columns.shape[1]), columns].sum(-1)
        return by_tap

    def spread(self, weights: Array, above: Array, below: Shape) -> Array:
        """Adjoint of the convolution whose taps have these weights."""
        if above.ndim == 1:
            return self._gathered(weights[:, None] * above, below[0])
        columns = self._read(below[1])
        rows = np.zeros((self.kernel, columns.shape[1], below[1] + 2 * self.reach))
        rows[:, np.arange(columns.shape[1]), columns] = weights[:, :, None]
        return self._gathered((above @ rows)[:, :, self.reach : self.reach + below[1]], below[0])

    def _gathered(self, by_tap: Array, size: int) -> Array:
        """What the taps, (taps, positions, ...), give back to the first axis below, of this size."""
        padded = np.zeros((size + 2 * self.reach, *by_tap.shape[2:]))
        for places, values in zip(self._read(size), by_tap, strict=True):
            padded[places[0] : places[-1] + 1 : self.stride] += values
        return padded[self.reach : self.reach + size]

    def _read(self, below: int) -> Indices:
        """Where in the padded axis below a tap reads, (taps, positions)."""
        taps, positions = np.arange(self.kernel) * self.dilation, np.arange(self.size(below)) * self.stride
        return taps[:, None] + positions


def _padded(energy: Array, reach: int) -> Array:
    """Zeros before and behind the first axis."""
    padded = np.zeros((len(energy) + 2 * reach, *energy.shape[1:]))
    padded[reach : reach + len(energy)] = energy
    return padded


def layers(design: Design, gain: float) -> tuple[Layer, ...]:
    """Stem, layers and head, inputs first.

    Args:
        design: what to build.
        gain: A / B of its activation, what a layer whose weights keep the variance does to path energy.

    """
    width = design.width
    found = [Layer(design.kernel, 1, design.strides[0], 1, width, 1.0)]
    for dilation, stride, skip in zip(design.dilations, design.strides[1:], design.skips, strict=True):
        factor = (design.branch or 0.0) ** 2 if skip else 1.0
        found.append(Layer(design.kernel, dilation, stride, width, width, factor * gain, skip))
    return (*found, Layer(1, 1, 1, width, 1, gain, free=False))
