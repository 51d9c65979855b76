"""The input metric S, where its constant stands, and the input directions whose derivatives are the constraints.

Inputs are x = mu + A z with A A' = S and the identity metric in z: directions are the columns of the root A, and the
constant's slot stands at mu, the data's mean, f = grad f . (x - mu) + b(x) (docs/theory.md, section 2). With the
identity metric mu is zero.

Index convention: d directions over the input's own axes; slot i is input i, the last slot the constant input. Rows of
constraints are (..., o, e, s) for outputs, examples and slots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capalloc._linalg.covariance import root_of_covariance, root_of_variances, rounding_of
from capalloc._linalg.metric_names import METRICS, MetricName
from capalloc._model.input_moments import InputMoments
from capalloc._model.problem import Problem

InputMetricLike = MetricName | Tensor | None


@dataclass(frozen=True)
class Directions:
    """Directions shared by all examples, and optionally the radial one, mu - x, that brings the constant input.

    A row of constraints is (D_v + alpha) g: alpha is 1 on the radial direction and 0 elsewhere.
    """

    shared: Tensor  # (d, *input)
    radial: bool
    slots: Tensor  # (d,) or (d + 1,): which input each row belongs to
    center: Tensor | None = None  # mu, (*input); None for zero

    def at(self, x: Tensor) -> Tensor:
        """The directions at one example: (d, *input)."""
        if not self.radial:
            return self.shared
        return torch.cat([self.shared, (-x if self.center is None else self.center - x)[None]])

    @property
    def alpha(self) -> Tensor:
        """Weight of the plain gradient in each row: (d,)."""
        alpha = self.shared.new_zeros(len(self.slots))
        if self.radial:
            alpha[-1] = 1.0
        return alpha


@dataclass(frozen=True)
class InputMetric:
    """A root A of the input metric, and where its constant stands."""

    shape: tuple[int, ...]
    root: Tensor | None  # None is the identity, a vector a diagonal, a matrix itself: S = A A'
    like: Tensor  # for dtype and device
    intercept: bool
    center: Tensor | None = None  # mu, of the inputs' shape; None is zero
    word: str = "identity"  # what results call it

    @property
    def variances(self) -> Tensor:
        """Diagonal of S, of the inputs' shape."""
        if self.root is None:
            return self.like.new_ones(self.shape)
        return (self.root.square() if self.root.ndim == 1 else self.root.square().sum(1)).reshape(self.shape)

    def tensors(self) -> list[Tensor]:
        """List what it is made of."""
        return [t for t in (self.root, self.center) if t is not None]

    def to(self, like: Tensor) -> InputMetric:
        """The same in another precision or place."""
        root, center = (None if t is None else t.to(like) for t in (self.root, self.center))
        return replace(self, root=root, center=center, like=like)

    def centred(self, x: Tensor) -> Tensor:
        """x - mu."""
        return x if self.center is None else x - self.center

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
            yield Directions(self.columns(start, stop), radial, slots, self.center)

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
        constant = value - (flat * self.centred(x).flatten(1)).sum(-1)
        return torch.cat([rows, constant[..., None]], -1)

    def directions(self, r: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The transpose: rows (..., o, e, s) to input directions (..., o, e, *inputs) and weights of the output."""
        n = self.num_inputs
        v = self.along(r[..., :n])
        constant = r[..., n] if self.intercept else r.new_zeros(r.shape[:-1])
        return (v - self.centred(x).flatten(1) * constant[..., None]).unflatten(-1, self.shape), constant

    def times_root(self, flat: Tensor) -> Tensor:
        """A' g along the last axis: slopes in x to slopes in z."""
        if self.root is None:
            return flat
        return flat * self.root if self.root.ndim == 1 else flat @ self.root

    def along(self, flat: Tensor) -> Tensor:
        """A z along the last axis: directions in z to directions in x."""
        if self.root is None:
            return flat
        return flat * self.root if self.root.ndim == 1 else flat @ self.root.T


def input_metric(metric: InputMetricLike, problem: Problem, intercept: bool = True) -> InputMetric:
    """Check `metric` against the inputs, take its root, and find where its constant stands.

    Args:
        metric: "identity" or None; "variance" or "covariance", of the data; or variances of the inputs' own shape, or
            a covariance, (n, n) or the inputs' shape twice over.
        problem: model and examples.
        intercept: whether the constant input has a slot.

    Raises:
        ValueError: no known word, too little data, wrong shape, not finite, a negative variance, not symmetric or not
            positive semi-definite.

    """
    probe = problem.probe
    shape = tuple(probe.shape[1:])
    if metric is None or (isinstance(metric, str) and metric == "identity"):
        return InputMetric(shape, None, probe, intercept)
    if isinstance(metric, str):
        root, moments = _root_of_data(metric, problem)
        word: str = metric
    else:
        root, moments, word = _root_of_tensor(metric, probe), InputMoments.of(problem.inputs), "tensor"
    return InputMetric(shape, root.to(probe), probe, intercept, moments.mean.to(probe), word)


def _root_of_data(metric: str, problem: Problem) -> tuple[Tensor, InputMoments]:
    """A root of the data's own variances or covariance."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, or a tensor, got {metric!r}")
    moments = InputMoments.of(problem.inputs)
    if moments.count < 2:
        raise ValueError(
            f"metric={metric!r} is taken from the data, and inputs hold 1 example: pass at least 2, or "
            "metric='identity'"
        )
    if not bool((moments.variance > 0).any()):
        raise ValueError(
            f"metric={metric!r} is taken from the data, and no input varies over the {moments.count} examples: pass "
            "examples that differ, or metric='identity'"
        )
    if metric == "variance":
        return moments.variance.sqrt().flatten(), moments
    return moments.root_of_correlation(problem.inputs), moments


def _root_of_tensor(given: Tensor, probe: Tensor) -> Tensor:
    """The symmetric root of a metric that the user gives."""
    try:
        metric = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"metric must be one of {', '.join(METRICS)}, or a tensor, got {type(given).__name__}"
        ) from error
    if metric.is_complex():
        raise TypeError("metric must hold real numbers, got complex ones")
    shape, n = tuple(probe.shape[1:]), probe[0].numel()
    values = metric.detach().to(probe.device, torch.float64)
    if not torch.isfinite(values).all():
        raise ValueError("metric holds NaN or inf; it must be finite variances or a finite covariance")
    if tuple(metric.shape) == shape:
        return root_of_variances(values.reshape(n))
    if tuple(metric.shape) in ((n, n), shape * 2):
        return root_of_covariance(values.reshape(n, n), rounding_of(metric.reshape(n, n)))
    raise ValueError(
        f"metric has shape {tuple(metric.shape)}; pass variances of shape {shape} or a covariance of shape {(n, n)}"
        + (f" or {shape * 2}" if len(shape) > 1 else "")
    )
