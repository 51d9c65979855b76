"""Labels of channels, which name the units that a rescaling must treat alike, and what binds them.

Give every unit a potential a; multiply each free parameter between units by exp(a_written - a_read). Path
energies stay as they are if a = 0 at the inputs, the constant and the outputs (`GROUND`), if units joined
without a free parameter (a residual addition, pooling, a fixed weight) have one potential, and if every use of a
shared parameter asks for the same factor. Each independent choice of potentials is a symmetry and costs one unit
of capacity (docs/theory.md, section 4): a hidden channel, one per residual stream channel.

Labels name potentials. They are integer tensors broadcastable to a unit tensor: 0 for units that carry nothing,
1 for GROUND.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from capalloc._energy.symmetries.potentials import DEFAULT_LIMITS, Limits, Potentials, joined, potentials
from capalloc._energy.symmetries.relations import GROUND, NOTHING, Served, Sharing, Uses

__all__ = ["DEFAULT_LIMITS", "GROUND", "NOTHING", "Channels", "Limits", "Potentials", "connected", "filled", "narrowed"]

Labels = NDArray[np.int64]


class Channels:
    """Channel labels, the ties between them, and what shared parameters ask of them."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self.count = 2
        self.exact = True  # False once something was met that labels cannot tell apart
        self._roots: Labels = np.arange(2)  # label -> the smallest label it is known to be tied to
        self._ties: list[Labels] = []  # not in _roots yet
        self._forced: list[tuple[Labels, Labels, int]] = []  # ties, and what was known before: roots and sharing
        self._sharing: list[Sharing] = []
        self._shifted: Labels = np.empty((0, 2), dtype=np.int64)  # ties by a constant that is added

    def fresh(self, shape: Sequence[int]) -> Tensor:
        """New labels, one for each entry."""
        size = math.prod(shape)
        labels = torch.arange(self.count, self.count + size).reshape(tuple(shape))
        self.count += size
        return labels

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Rescale a and b together, entry by entry (broadcast)."""
        pairs = _rows(a, b)
        if len(pairs):
            self._ties.append(pairs)

    def shift(self, a: Tensor, b: Tensor) -> None:
        """Tie what a constant is added to: biases may make up for the change, so that it may be no tie at all."""
        self._shifted = np.unique(np.concatenate([self._shifted, _rows(a, b)]), axis=0)

    def uses(self, parameter: Tensor, written: Tensor, read: Tensor) -> None:
        """Uses of free parameters, one a row: a parameter's uses ask for the same difference of potentials.

        Args:
            parameter: a number for each parameter, its own within this call.
            written: label that the use writes.
            read: label that the use reads.

        """
        self._sharing.append(Uses(parameter.numpy(), written.numpy(), read.numpy()))

    def serve(self, written: Tensor, read: Tensor, used: Tensor) -> None:
        """A map of free weights that serves several classes of positions; shapes as in `relations.Served`."""
        self._sharing.append(Served(written.numpy(), read.numpy(), used.numpy()))

    def canonical(self, labels: Tensor) -> Tensor:
        """The same potentials by one name each, as far as ties up to now tell."""
        if len(self._roots) < self.count:
            self._roots = np.concatenate([self._roots, np.arange(len(self._roots), self.count)])
        if self._ties:
            self._roots = joined(self._roots, np.concatenate(self._ties))
            self._ties = []
        return torch.from_numpy(self._roots)[labels]

    def uniform(self, labels: Tensor, shape: Sequence[int], dims: Iterable[int]) -> Tensor | None:
        """Labels of a tensor of shape `shape` with the axes `dims` cut to length 1, None where they differ."""
        labels, first, dims = _first(labels, shape, dims)
        if _differ(labels, first):
            labels, first, dims = _first(self.canonical(labels), shape, dims)
            if _differ(labels, first):
                return None
        return first.expand([1 if k in dims else n for k, n in enumerate(shape)])

    def merge(self, labels: Tensor, shape: Sequence[int], dims: Iterable[int], forced: bool = False) -> Tensor:
        """Tie labels along `dims` and cut those axes to length 1.

        With `forced`, the tie is made for want of a finer description: unless all that was known before implies
        it, the count of symmetries is a lower bound. What comes later does not count: it may follow from the tie.
        """
        labels, first, dims = _first(labels, shape, dims)
        if _differ(labels, first):
            pairs = _rows(labels, first)
            if forced and _differ(known := self.canonical(labels), known.amax(dim=dims, keepdim=True)):
                self._forced.append((pairs, self._roots, len(self._sharing)))
            self._ties.append(pairs)
        return first.expand([1 if k in dims else n for k, n in enumerate(shape)])

    def with_ties_of(self, other: Channels) -> Channels:
        """Tie what other examples tie as well: an entry that wins on one example may not on another."""
        if other.count != self.count:
            raise ValueError(
                "which channels rescale together depends on the examples in a way that paths cannot follow from batch "
                "to batch: give a batch_size of all examples, or use solver='block', which needs no paths"
            )
        every = torch.arange(self.count)
        theirs = other.canonical(every)
        if not torch.equal(self.canonical(every), theirs):
            self.tie(theirs, every)
        if not np.array_equal(self._shifted, other._shifted):
            self._shifted = np.unique(np.concatenate([self._shifted, other._shifted]), axis=0)
        self.exact &= other.exact
        return self

    def resolve(self) -> Potentials:
        """Settle all ties: what can be rescaled, and how."""
        self.canonical(torch.tensor(GROUND))
        exact = self.exact and all(
            potentials(roots, self._sharing[:shared], limits=self.limits).equal(pairs)
            for pairs, roots, shared in self._forced
        )
        if len(self._shifted):
            exact = exact and potentials(self._roots, self._sharing, limits=self.limits).equal(self._shifted)
            self._roots = joined(self._roots, self._shifted)
        return potentials(self._roots, self._sharing, exact, self.limits)


def narrowed(*labels: Tensor, dims: Iterable[int] | None = None) -> tuple[Tensor, ...]:
    """Labels broadcast together, with each axis (of `dims`) cut to length 1 along which all stay the same."""
    labels = torch.broadcast_tensors(*labels)
    for axis in range(labels[0].ndim) if dims is None else dims:
        if labels[0].shape[axis] > 1:
            first = [x.narrow(axis, 0, 1) for x in labels]
            same = (x.stride(axis) == 0 or bool((x == f).all()) for x, f in zip(labels, first, strict=True))
            if all(same):
                labels = tuple(first)
    return tuple(labels)


def filled(labels: Tensor | None, others: Tensor | None) -> Tensor | None:
    """Labels of a sum: those of the one term, of the other where nothing passes the first."""
    if labels is None or others is None or bool((labels > NOTHING).all()):
        return labels
    return torch.where(labels > NOTHING, labels, others)


def connected(pattern: Tensor) -> tuple[Tensor, Tensor]:
    """The group of every row and every column: connected components of a 0-1 matrix."""
    rows, cols = (index.numpy() for index in pattern.cpu().nonzero(as_tuple=True))
    k, m = pattern.shape
    _, group = connected_components(coo_array((np.ones(len(rows)), (rows, cols + k)), shape=(k + m, k + m)))
    group = torch.from_numpy(group).long()
    return group[:k], group[k:]


def _rows(*labels: Tensor) -> Labels:
    """Labels of one broadcast entry side by side, without those that carry nothing and pairs of one label."""
    rows = torch.stack([x.reshape(-1) for x in narrowed(*labels)], dim=1)
    rows = rows[(rows > NOTHING).all(1)]
    if len(labels) == 2:
        rows = rows[rows[:, 0] != rows[:, 1]]
    return rows.numpy()


def _first(labels: Tensor, shape: Sequence[int], dims: Iterable[int]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    dims = tuple(d % len(shape) for d in dims)
    labels = labels.reshape((1,) * (len(shape) - labels.ndim) + tuple(labels.shape))
    return labels, labels.amax(dim=dims, keepdim=True) if dims else labels, dims


def _differ(labels: Tensor, first: Tensor) -> bool:
    return bool(((labels != first) & (labels > NOTHING)).any())
