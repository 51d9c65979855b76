"""Decoupling of two Gaussian pre-activations: closed forms, and quadrature for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, cast, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from capalloc._decoupling import quadrature
from capalloc._decoupling.activations import Elementwise, checked_slope, resolve
from capalloc._decoupling.closed_forms import CLOSED_FORMS
from capalloc._decoupling.kinks import find_kinks
from capalloc._linalg.aliases import Array
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed

QUADRATURE_CHOICES = ("auto", "quadrature")
QuadratureChoice = Literal["auto", "quadrature"]


class GaussianFunction(Protocol):
    """A function of correlated Gaussians: a tensor of a tensor, an array of anything else."""

    @overload
    def __call__(
        self,
        activation: str | Elementwise,
        correlation: Tensor,
        variance: Tensor | ArrayLike = ...,
        *,
        kinks: Sequence[float] | None = ...,
        method: QuadratureChoice = ...,
    ) -> Tensor: ...
    @overload
    def __call__(
        self,
        activation: str | Elementwise,
        correlation: ArrayLike,
        variance: ArrayLike = ...,
        *,
        kinks: Sequence[float] | None = ...,
        method: QuadratureChoice = ...,
    ) -> Array: ...


def _typed(function: Callable[..., Any]) -> GaussianFunction:
    return cast(GaussianFunction, function)


@_typed
@checked
@undisturbed()
def gaussian_decoupling(
    activation: str | Elementwise,
    correlation: Tensor | ArrayLike,
    variance: Tensor | ArrayLike = 1.0,
    *,
    kinks: Sequence[float] | None = None,
    method: QuadratureChoice = "auto",
) -> Tensor | Array:
    """Decoupling of two units whose Gaussian pre-activations correlate: 0 linear, 1 total.

    $d = 1 - |A(rho)| / A(1)$, with $A(rho) = E[phi'(z) phi'(z')]$ (docs/theory.md, section 3). For ReLU
    $d = arccos(rho) / pi$.

    Args:
        activation: a name ("relu", "abs", "erf", "sin", "tanh", "gelu", ...), a torch.nn module, or any elementwise
            differentiable function of a float64 tensor.
        correlation: $rho$, any shape.
        variance: variance of both pre-activations; broadcasts with `correlation`.
        kinks: points where the slope, or its derivative, jumps; found by bisection if None.
        method: "auto" takes the closed form of linear, ReLU, leaky ReLU, PReLU, `Abs`, `Erf` and `Sine`, and
            quadrature for the rest; "quadrature" takes it for all.

    Returns:
        d in [0, 1], of the broadcast shape, in float64: a tensor if `correlation` is one, else an array.

    Raises:
        ValueError: a correlation outside [-1, 1], a variance that is not positive, an unknown name, an activation
            that is not elementwise, or one whose slope is zero everywhere.
        TypeError: an activation that is no function.

    Warns:
        RuntimeWarning: the quadrature did not settle to 1e-9.

    Reference: J. Donier, Capacity allocation through neural network layers, arXiv 1902.08572.

    """
    rho, v, as_tensor = _arguments(correlation, variance)
    chosen = resolve(activation)
    cross, own = _moments(chosen, rho, v, kinks, method)
    if not (own > 0).all():
        raise ValueError("activation has a slope of zero almost everywhere, so its gates pass nothing to decouple")
    d = np.clip(1 - np.abs(cross) / own, 0.0, 1.0)
    return torch.from_numpy(np.asarray(d)) if as_tensor else d


@_typed
@checked
@undisturbed()
def gaussian_gate_moment(
    activation: str | Elementwise,
    correlation: Tensor | ArrayLike,
    variance: Tensor | ArrayLike = 1.0,
    *,
    kinks: Sequence[float] | None = None,
    method: QuadratureChoice = "auto",
) -> Tensor | Array:
    """The gate moment $A(rho) = E[phi'(z) phi'(z')]$ of Gaussian pre-activations (docs/theory.md, section 3).

    At $rho = 1$ it is the mean squared gate $E[a^2]$. `gaussian_gate_moment(activation, correlation_matrix)` is what
    `propagate_moments` takes for a layer of Gaussian pre-activations of one variance.

    Args:
        activation: as in `gaussian_decoupling`, as are the other arguments.
        correlation: $rho$, any shape; a correlation matrix gives a matrix of gate moments.
        variance: variance of both pre-activations; broadcasts with `correlation`.
        kinks: points where the slope, or its derivative, jumps; found by bisection if None.
        method: "auto" or "quadrature".

    Returns:
        A, of the broadcast shape, in float64: a tensor if `correlation` is one, else an array.

    Raises:
        ValueError, TypeError: as `gaussian_decoupling`; a slope of zero is a moment of zero here.

    Warns:
        RuntimeWarning: the quadrature did not settle to 1e-9.

    """
    rho, v, as_tensor = _arguments(correlation, variance)
    cross, _ = _moments(resolve(activation), rho, v, kinks, method)
    return torch.from_numpy(cross) if as_tensor else cross


def _moments(
    activation: Elementwise, rho: Array, variance: Array, kinks: Sequence[float] | None, method: str
) -> tuple[Array, Array]:
    if method not in QUADRATURE_CHOICES:
        raise ValueError(f"method must be one of {QUADRATURE_CHOICES}, got {method!r}")
    closed = CLOSED_FORMS.get(type(activation))  # type: ignore[arg-type]
    if closed is not None and method == "auto":
        return closed.gates(activation, rho, variance), closed.gates(activation, np.ones_like(rho), variance)
    gate = checked_slope(activation)
    cross, own = np.empty_like(rho), np.empty_like(rho)
    for v in np.unique(variance):
        scale = math.sqrt(v)
        points = find_kinks(activation, quadrature.GAUSSIAN_REACH * scale) if kinks is None else _checked_kinks(kinks)
        here = variance == v
        # Repeated correlations, as in a matrix of them, are integrated once.
        distinct, back = np.unique(rho[here], return_inverse=True)
        values = quadrature.moment(gate, torch.from_numpy(distinct), scale, points)
        cross[here] = values.numpy()[back.ravel()]
        own[here] = quadrature.mean_square(gate, scale, points)
    return cross, own


def feature_moment(activation: Elementwise, rho: Array, variance: float, kinks: Sequence[float]) -> Array:
    """B(rho) = E[phi(z) phi(z')], in closed form where one is known.

    The kernel map k(rho) = B(rho) / B(1) is the correlation that a random layer of infinite width gives to what
    follows it (docs/theory.md, section 6).

    Args:
        activation: phi, elementwise on float64 tensors.
        rho: correlations in [-1, 1], shape (pairs,).
        variance: v of both pre-activations.
        kinks: points where phi' or phi'' jumps; not used by closed forms.

    """
    closed = CLOSED_FORMS.get(type(activation))  # type: ignore[arg-type]
    if closed is not None:
        return closed.features(activation, rho, variance)
    distinct, back = np.unique(rho, return_inverse=True)
    values: Array = quadrature.moment(activation, torch.from_numpy(distinct), math.sqrt(variance), kinks).numpy()
    return values[back]


def _checked_kinks(kinks: Sequence[float]) -> tuple[float, ...]:
    points = tuple(sorted(float(k) for k in kinks))
    if not all(math.isfinite(k) for k in points):
        raise ValueError(f"kinks must be finite numbers, got {points}")
    return points


def _arguments(correlation: Tensor | ArrayLike, variance: Tensor | ArrayLike) -> tuple[Array, Array, bool]:
    as_tensor = isinstance(correlation, Tensor)
    rho, v = np.broadcast_arrays(_array(correlation), _array(variance))
    if not (np.abs(rho) <= 1 + 1e-12).all():  # NaN fails too
        raise ValueError(f"correlation must lie in [-1, 1], got values from {rho.min()} to {rho.max()}")
    if not (np.isfinite(v).all() and (v > 0).all()):
        raise ValueError(f"variance must be positive and finite, got values from {v.min()} to {v.max()}")
    return np.clip(rho, -1.0, 1.0), np.array(v), as_tensor


def _array(value: Tensor | ArrayLike) -> Array:
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
