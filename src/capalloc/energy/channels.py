"""Which units a rescaling must treat alike: the symmetries of the energy network.

Multiplying what is written into a channel and dividing what is read from it leaves every path energy as it
was, so each free channel costs one unit of capacity (docs/theory.md, section 4). Units joined by an edge
without a free parameter (a residual addition, pooling, a fixed weight) must be rescaled together; units tied
to the inputs, the constant or the outputs (`GROUND`) cannot be.

Labels are integer tensors broadcastable to a unit tensor: 0 for units that carry nothing, 1 for GROUND.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

NOTHING, GROUND = 0, 1


class Channels:
    """Channel labels and the ties between them."""

    def __init__(self) -> None:
        self.count = 2
        self.exact = True  # False once a tie was forced that a more general symmetry might survive
        self._pairs: list[Tensor] = []

    def fresh(self, shape: tuple[int, ...]) -> Tensor:
        """New labels, one for each entry."""
        size = int(np.prod(shape))
        labels = torch.arange(self.count, self.count + size).reshape(shape)
        self.count += size
        return labels

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Rescale a and b together, entry by entry (broadcast)."""
        a, b = torch.broadcast_tensors(a, b)
        pairs = torch.stack([a.reshape(-1), b.reshape(-1)], dim=1)
        pairs = pairs[(pairs > NOTHING).all(1) & (pairs[:, 0] != pairs[:, 1])]
        if len(pairs):
            self._pairs.append(torch.unique(pairs, dim=0))

    def merge(self, labels: Tensor, shape: Sequence[int], dims: Iterable[int], forced: bool = False) -> Tensor:
        """Tie labels of a tensor of shape `shape` along `dims`; keep one of each, those axes with length 1.

        With `forced`, merging labels that differ marks the count of symmetries as a lower bound.
        """
        dims = tuple(d % len(shape) for d in dims)
        labels = labels.reshape((1,) * (len(shape) - labels.ndim) + tuple(labels.shape))
        first = labels.amax(dim=dims, keepdim=True) if dims else labels
        if bool(((labels != first) & (labels > NOTHING)).any()):
            self.exact = self.exact and not forced
            self.tie(labels, first)
        return first.expand([1 if k in dims else n for k, n in enumerate(shape)])

    def components(self) -> Tensor:
        """Component of every label, GROUND's own first: index 0 for NOTHING and GROUND."""
        pairs = torch.cat(self._pairs).numpy() if self._pairs else np.zeros((0, 2), dtype=int)
        # NOTHING is joined to GROUND so that one index stands for "no symmetry".
        rows = np.concatenate([[NOTHING], pairs[:, 0]])
        cols = np.concatenate([[GROUND], pairs[:, 1]])
        graph = coo_array((np.ones(len(rows)), (rows, cols)), shape=(self.count, self.count))
        _, component = connected_components(graph, directed=False)
        swap = component[GROUND]
        return torch.from_numpy(np.where(component == swap, 0, np.where(component == 0, swap, component))).long()
