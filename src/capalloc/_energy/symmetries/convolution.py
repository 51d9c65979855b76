"""Channels around a convolution: one class of labels for each set of labels that positions read.

Index convention: labels around a weight are (groups, inputs, outputs, taps), with length 1 where they do not vary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from capalloc._energy.symmetries.classes import positions, share
from capalloc._energy.symmetries.labels import Channels, narrowed

Sides = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class Convolved:
    """A convolution as channels see it."""

    run: Callable[[Tensor, Tensor, int], Tensor]  # of input, weight and number of groups, without bias
    squares: Tensor  # of weights: (outputs, inputs / groups, *kernel), or (inputs, outputs / groups, *kernel)
    groups: int
    transposed: bool

    def around(self, channels: Channels, labels: Tensor, shape: Sequence[int]) -> tuple[Sides, Tensor]:
        """(read, written) for each class of positions, and the labels of the output.

        Args:
            channels: where labels and relations are kept.
            labels: labels of the input, broadcastable to its shape.
            shape: shape of the input, (examples, channels, *spatial).

        """
        dims = (0, *range(2, len(shape)))
        labels = labels.reshape((1,) * (len(shape) - labels.ndim) + tuple(labels.shape))
        same = channels.uniform(labels, shape, dims)
        if same is None:
            (labels,) = narrowed(channels.canonical(labels).expand(-1, *shape[1:]), dims=[0])
            read = self._taps(labels.double()).long().flatten(1, 2).movedim(1, -1)
            found = positions(channels, read, self._outputs)
            if len(found.read) * self.squares.numel() <= channels.limits.uses:
                return self._by_class(channels, found.read, found.place)
            same = channels.merge(labels, shape, dims, forced=True)
        return self._alike(channels, same, shape)

    @property
    def _outputs(self) -> int:
        return self.squares.shape[1] * self.groups if self.transposed else self.squares.shape[0]

    def _taps(self, x: Tensor) -> Tensor:
        """(batch, inputs, taps, *spatial): what each tap reads at each position, 0 outside the input."""
        kernel, inputs = self.squares.shape[2:], x.shape[1]
        each = torch.eye(kernel.numel(), dtype=x.dtype)
        each = (each[None] if self.transposed else each[:, None]).reshape(
            *((1, -1) if self.transposed else (-1, 1)), *kernel
        )
        out = self.run(x, each.repeat(inputs, *[1] * (each.ndim - 1)), inputs)
        return out.reshape(len(x), inputs, -1, *out.shape[2:])

    def _alike(self, channels: Channels, labels: Tensor, shape: Sequence[int]) -> tuple[Sides, Tensor]:
        """All positions read alike: those that have a tap in common write alike."""
        pattern = self._taps(torch.ones(1, 1, *shape[2:], dtype=torch.float64))[0, 0]
        if bool((pattern > 0).flatten(1).all(1).any()):  # a tap that all positions have
            written = channels.fresh((self._outputs,))
            side = labels.reshape(self.groups, -1, 1, 1), written.reshape(self.groups, 1, -1, 1)
            return ((self._as_weight(side[0]), self._as_weight(side[1])),), written.reshape(
                1, -1, *[1] * (len(shape) - 2)
            )
        taps, places = len(pattern), pattern.shape[1:]
        row, col = pattern.flatten(1).numpy().nonzero()
        size = taps + places.numel()
        _, group = connected_components(coo_array((np.ones(len(row)), (row, col + taps)), shape=(size, size)))
        _, group = np.unique(group[taps:], return_inverse=True)
        number = int(group.max()) + 1
        written = channels.fresh((number, self._outputs))
        place = torch.from_numpy(group.reshape(places)).long()
        of_tap = torch.zeros(taps, dtype=torch.long)
        of_tap[torch.from_numpy(row)] = place.reshape(-1)[torch.from_numpy(col)]
        if number == 1:
            of_tap, place = of_tap[:1], place.reshape(-1)[:1].reshape([1] * len(places))
        read = labels.reshape(self.groups, -1, 1, 1)
        side = self._as_weight(read), self._as_weight(written[of_tap].T.reshape(self.groups, 1, -1, len(of_tap)))
        return (side,), written[place].movedim(-1, 0)[None]

    def _by_class(self, channels: Channels, read: Tensor, place: Tensor) -> tuple[Sides, Tensor]:
        taps = self.squares.shape[2:].numel()
        squares = self.squares.reshape(self.groups, -1, self.squares.shape[1], taps)
        squares = squares.transpose(1, 2) if self.transposed else squares  # (groups, outputs, inputs, taps)
        read = read.reshape(len(read), self.groups, -1)
        written = share(channels, read, squares.flatten(2))
        sides = tuple(
            (self._as_weight(r.reshape(self.groups, -1, 1, taps)), self._as_weight(w[:, None, :, None]))
            for r, w in zip(read, written, strict=True)
        )
        return sides, written.flatten(1)[place].movedim(-1, 1)

    def _as_weight(self, labels: Tensor) -> Tensor:
        """Labels (groups, inputs, outputs, taps), broadcastable to the weight's shape."""
        labels = labels if self.transposed else labels.transpose(1, 2)
        if self.groups > 1:
            labels = labels.expand(-1, self.squares.shape[0] // self.groups, -1, -1)
        kernel = self.squares.shape[2:] if labels.shape[3] > 1 else [1] * len(self.squares.shape[2:])
        return labels.flatten(0, 1).reshape(-1, labels.shape[2], *kernel)
