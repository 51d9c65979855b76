"""Capacity of a linear model from its Jacobian: docs/theory.md, section 1.

Index convention: J is (inputs, outputs, params); constraints C = R'J are (inputs * outputs, params), S = R R'.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from capalloc._linalg.leverage import polar_factor
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc.linear.arrays import RealArray, real_tensor
from capalloc.linear.bases import Basis
from capalloc.linear.metrics import ROOT_KINDS, Covariance, Identity, Metric, RootKind, Variances
from capalloc.results.allocation import Allocation


@checked
@undisturbed()
def linear_capacity(
    jacobian: RealArray | xr.DataArray,
    covariance: RealArray | Metric | None = None,
    ridge: float = 0.0,
    *,
    root: RootKind = "symmetric",
    basis: Basis | None = None,
) -> Allocation:
    """Compute the capacity that a linear model $f(x) = w(theta)'x$ devotes to each input, by leverage scores.

    With $C = R'J$, $J = dw/dtheta$ and $S = R R'$, $kappa_i = [C (C'C + ridge)^+ C']_ii$, summed over outputs; the
    total is rank C, or with a ridge $sum s / (s + ridge)$ over the eigenvalues s of C'C (docs/theory.md, section 1; J.
    Donier, Capacity allocation analysis of neural networks, arXiv 1902.04485). The model is homogeneous: `bias` is
    zero.

    Which root. Inputs that are correlated share what they tell, and the root says whom it is credited to; totals do not
    depend on it. The symmetric root takes the uncorrelated coordinates closest to the inputs themselves and treats
    all inputs alike: the choice for images and whenever no order is given. The Cholesky root $S = L L'$ takes the
    innovations,
    what each input tells that those before it do not: the choice for a causal process in time order, where capacity
    on an innovation is capacity on what was new at that time.

    Args:
        jacobian: dw/dtheta, (inputs, params), or (inputs, outputs, params) where w is (inputs, outputs). Inputs with
            axes of their own, such as rows and columns of an image, come as an `xarray.DataArray` whose last axis is
            called "params"; an axis called "outputs" is the outputs, all others are the inputs' axes.
        covariance: S of the inputs, n in number: None for the identity, n variances, an (n, n) covariance, or a metric
            of `capalloc.linear`: `Stationary`, `LowRankPlusDiagonal`. Inputs with several axes are numbered as
            `reshape(-1)` does.
        ridge: non-negative, in units of C'C.
        root: "symmetric" or "cholesky".
        basis: coordinates of the whitened space to split capacity over in the place of the inputs, such as
            `fourier_basis(n)`; capacity outside an incomplete basis goes to a component "rest".

    Returns:
        An allocation with `kind="linear"`. `by_parameter` runs over single parameters, the columns of J, named by
        the coordinate "params" where there is one: how much of each is in effective use, in [0, 1].

    Raises:
        TypeError: something is not an array of real numbers.
        ValueError: shapes that do not fit, NaN or inf, ridge < 0, an unknown root, or no covariance.

    """
    start = time.perf_counter()
    J = _labelled(jacobian)
    axes = [str(dim) for dim in J.dims if dim not in ("outputs", "params")]
    values = torch.from_numpy(J.values)
    flat = values.double().flatten(0, len(axes) - 1)
    metric = _checked_metric(covariance, len(flat))
    _check_settings(ridge, root, basis, len(flat))
    C = metric.whiten(flat.flatten(1), root).reshape(-1, J.sizes["params"])
    if not ridge:  # then units change nothing, and squares keep to the range of floating point
        C = C * 2.0 ** min(-math.frexp(float(C.abs().max()))[1], 1000)
    polar, solved = polar_factor(C, ridge, torch.finfo(values.dtype).eps)
    shares = _shares(polar.reshape(len(flat), -1, J.sizes["params"]), basis)
    return _allocation(
        _over_inputs(shares, J, axes) if basis is None else _over_components(shares, basis),
        J,
        {
            "kind": "linear",
            "num_params": J.sizes["params"],
            "num_outputs": J.sizes.get("outputs", 1),
            "rank": solved.rank,
            "tolerance": solved.tolerance,
            "ridge": float(ridge),
            "metric": metric.name,
            "root": root,
            "seconds": time.perf_counter() - start,
        },
    )


def _labelled(jacobian: RealArray | xr.DataArray) -> xr.DataArray:
    """Name the axes of the Jacobian, (*inputs, outputs, params) or (*inputs, params), in floating point."""
    if isinstance(jacobian, xr.DataArray):
        J = jacobian.copy(data=real_tensor(jacobian.values, "jacobian").numpy())
        if J.ndim < 2 or J.dims[-1] != "params" or set(J.dims) <= {"outputs", "params"}:
            raise ValueError(f"jacobian has axes {J.dims}; it needs those of the inputs, and 'params' last")
        J = J.transpose(..., "outputs", "params", missing_dims="ignore")
    else:
        values = real_tensor(jacobian, "jacobian").numpy()
        if values.ndim not in (2, 3):
            raise ValueError(
                f"jacobian has shape {values.shape}; it must be (inputs, params) or (inputs, outputs, params). "
                "For inputs with several axes pass an xarray.DataArray with named axes, the last one 'params'"
            )
        J = xr.DataArray(values, dims=("input", "params") if values.ndim == 2 else ("input", "outputs", "params"))
    if J.size == 0:
        raise ValueError(f"jacobian is empty: shape {J.shape}")
    return J


def _checked_metric(covariance: RealArray | Metric | None, n: int) -> Metric:
    if covariance is None:
        return Identity()
    if isinstance(covariance, Metric):
        metric: Metric = covariance
    else:
        S = real_tensor(covariance, "covariance")
        if S.shape not in ((n,), (n, n)):
            raise ValueError(
                f"covariance has shape {tuple(S.shape)}, and the jacobian {n} inputs; "
                f"pass {n} variances or a covariance of shape {(n, n)}"
            )
        metric = Variances(S) if S.ndim == 1 else Covariance(S)
    if metric.size not in (None, n):
        raise ValueError(f"the {metric.name} covariance is of {metric.size} inputs, the jacobian of {n}")
    return metric


def _check_settings(ridge: float, root: str, basis: Basis | None, n: int) -> None:
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge must be a finite number >= 0, got {ridge}")
    if root not in ROOT_KINDS:
        raise ValueError(f"root must be one of {', '.join(ROOT_KINDS)}, got {root!r}")
    if basis is not None and basis.size != n:
        raise ValueError(f"the basis is of {basis.size} inputs, the jacobian of {n}")


def _shares(polar: Tensor, basis: Basis | None) -> Tensor:
    """Capacity of (inputs or components, params), from the polar factor by (inputs, outputs, params)."""
    if basis is None:
        by_input: Tensor = polar.square().sum(1)
        return by_input
    shares: Tensor = basis.squares(polar.flatten(1)).unflatten(1, polar.shape[1:]).sum(1)
    if basis.complete:
        return shares
    rest = (polar.square().sum((0, 1)) - shares.sum(0)).clamp(min=0)
    return torch.cat([shares, rest[None]])


def _over_inputs(shares: Tensor, J: xr.DataArray, axes: list[str]) -> xr.DataArray:
    own = [J.sizes[dim] for dim in axes]
    coords = {name: c for name, c in J.coords.items() if set(c.dims) <= set(axes) and c.dims}
    return xr.DataArray(shares.reshape(*own, -1).numpy(), dims=(*axes, "parameter"), coords=coords)


def _over_components(shares: Tensor, basis: Basis) -> xr.DataArray:
    labels = basis.labels if basis.complete else np.append(basis.labels, "rest")
    return xr.DataArray(shares.numpy(), dims=(basis.axis, "parameter"), coords={basis.axis: labels})


def _allocation(shares: xr.DataArray, J: xr.DataArray, attrs: dict[str, Any]) -> Allocation:
    names = [str(name) for name in J["params"].values]
    plain = shares.assign_coords(parameter=names).transpose("parameter", ...)
    table = plain.assign_coords(bias=("parameter", np.zeros(len(names))))
    axes = [dim for dim in plain.dims if dim != "parameter"]
    return Allocation(capacity=plain.sum("parameter"), bias=0.0, by_parameter=plain.sum(axes), table=table, attrs=attrs)
