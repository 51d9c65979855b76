"""Input directions whose derivatives are the constraints: columns of the metric's symmetric root.

Index convention: d directions over the input's own axes; slot i is input i, the last slot the constant input. Rows of
constraints are (..., o, e, s) for outputs, examples and slots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._linalg.covariance import root_of_covariance, root_of_variances, rounding_of


@dataclass(frozen=True)
class Directions:
    """Directions shared by all examples, and optionally the radial one, -x, that brings the constant input.

    A row of constraints is (D_v + alpha) g: alpha is 1 on the radial direction and 0 elsewhere.
    """

    shared: Tensor  # (d, *input)
    radial: bool
    slots: Tensor  # (d,) or (d + 1,): which input each row belongs to

    def at(self, x: Tensor) -> Tensor:
        """The directions at one example: (d, *input)."""
        return torch.cat([self.shared, -x[None]]) if self.radial else self.shared

    @property
    def alpha(self) -> Tensor:
        """Weight of the plain gradient in each row: (d,)."""
        alpha = self.shared.new_zeros(len(self.slots))
        if self.radial:
            alpha[-1] = 1.0
        return alpha


@dataclass(frozen=True)
class InputMetric:
    """Symmetric root of the input metric: None is the identity, a vector a diagonal, a matrix itself."""

    shape: tuple[int, ...]
    root: Tensor | None
    like: Tensor  # for dtype and device
    intercept: bool

    @property
    def num_inputs(self) -> int:
        """Number of scalar inputs, n."""
        return math.prod(self.shape)

    @property
    def num_slots(self) -> int:
        """Number of rows of constraints per example and output."""
        return self.num_inputs + self.intercept

    def chunks(self, size: int) -> Iterator[Directions]:
        """All directions, about `size` at a time; the radial one goes with the last."""
        n = self.num_inputs
        for start in range(0, n, size):
            stop = min(start + size, n)
            radial = self.intercept and stop == n
            slots = torch.arange(start, stop + radial, device=self.like.device)
            yield Directions(self.columns(start, stop), radial, slots)

    def columns(self, start: int, stop: int) -> Tensor:
        """Columns of the root as directions: (stop - start, *input)."""
        if self.root is not None and self.root.ndim == 2:
            return self.root[:, start:stop].T.reshape(-1, *self.shape)
        index = torch.arange(stop - start)
        unit = self.like.new_zeros(stop - start, self.num_inputs)
        unit[index, index + start] = 1.0 if self.root is None else self.root[start:stop]
        return unit.reshape(-1, *self.shape)

    def rows(self, slope: Tensor, value: Tensor, x: Tensor) -> Tensor:
        """Rows from changes of the slopes (..., o, e, *inputs) and of the outputs (..., o, e): (..., o, e, s)."""
        flat = slope.flatten(value.ndim)
        rows = self.times_root(flat)
        if not self.intercept:
            return rows
        constant = value - (flat * x.flatten(1)).sum(-1)
        return torch.cat([rows, constant[..., None]], -1)

    def directions(self, r: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The transpose: rows (..., o, e, s) to input directions (..., o, e, *inputs) and weights of the output."""
        n = self.num_inputs
        v = self.times_root(r[..., :n])
        constant = r[..., n] if self.intercept else r.new_zeros(r.shape[:-1])
        return (v - x.flatten(1) * constant[..., None]).unflatten(-1, self.shape), constant

    def times_root(self, flat: Tensor) -> Tensor:
        """S^(1/2) along the last axis."""
        if self.root is None:
            return flat
        return flat * self.root if self.root.ndim == 1 else flat @ self.root


def input_metric(metric: Tensor | None, probe: Tensor, intercept: bool) -> InputMetric:
    """Check `metric` against the inputs' shape, and take its symmetric root.

    Args:
        metric: None for the identity, variances of the inputs' own shape, or a covariance, (n, n) or the
            inputs' shape twice over.
        probe: one example with its leading axis.
        intercept: whether the constant input has a slot.

    Raises:
        ValueError: wrong shape, not finite, a negative variance, not symmetric or not positive semi-definite.

    """
    shape = tuple(probe.shape[1:])
    n = math.prod(shape)
    if metric is None:
        return InputMetric(shape, None, probe, intercept)
    metric = torch.as_tensor(metric)
    given = tuple(metric.shape)
    values = metric.detach().to(probe)
    if not torch.isfinite(values).all():
        raise ValueError("metric holds NaN or inf; it must be finite variances or a finite covariance")
    if given == shape:
        root = root_of_variances(values.reshape(n))
    elif given in ((n, n), shape * 2):
        root = root_of_covariance(values.reshape(n, n), rounding_of(metric.reshape(n, n)))
    else:
        raise ValueError(
            f"metric has shape {given}; pass variances of shape {shape} or a covariance of shape {(n, n)}"
            + (f" or {shape * 2}" if len(shape) > 1 else "")
        )
    return InputMetric(shape, root, probe, intercept)
