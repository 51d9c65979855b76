"""Capacity of a linear model from its Jacobian: docs/theory.md, section 1.

Index convention: J is (inputs, outputs, params); constraints C = S^(1/2) J are (inputs * outputs, params).
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor

from capalloc.allocation import Allocation
from capalloc.covariance import root_of_covariance, root_of_variances, rounding_of

Array = Tensor | ArrayLike


def linear_capacity(
    jacobian: Array | xr.DataArray,
    covariance: Array | None = None,
    ridge: float = 0.0,
) -> Allocation:
    """Capacity that a linear model f(x) = w(theta)'x devotes to each input: leverage scores of its constraints.

    With C = S^(1/2) J and J = dw/dtheta, kappa_i = [C (C'C + ridge)^+ C']_ii, summed over outputs; the total is
    rank C, or with a ridge sum s / (s + ridge) over the eigenvalues s of C'C (docs/theory.md, section 1; J. Donier,
    Capacity allocation analysis of neural networks, arXiv 1902.04485). The model is homogeneous: `bias` is zero.

    Args:
        jacobian: dw/dtheta, (inputs, params), or (inputs, outputs, params) where w is (inputs, outputs). Inputs with
            axes of their own, such as rows and columns of an image, come as an `xarray.DataArray` whose last axis is
            called "params"; an axis called "outputs" is the outputs, all others are the inputs' axes.
        covariance: S of the inputs, n in number: None for the identity, n variances, or an (n, n) covariance.
            Inputs with several axes are numbered as `reshape(-1)` does.
        ridge: non-negative, in units of C'C.

    Returns:
        An allocation with `kind="linear"`. `by_parameter` runs over single parameters, the columns of J, named by
        the coordinate "params" where there is one: how much of each is in effective use, in [0, 1].

    Raises:
        TypeError: something is not an array of real numbers.
        ValueError: shapes that do not fit, NaN or inf, ridge < 0, or no covariance.

    """
    start = time.perf_counter()
    J = _labelled(jacobian)
    axes = [str(dim) for dim in J.dims if dim not in ("outputs", "params")]
    values = torch.from_numpy(J.values)
    C = _whiten(values.double().flatten(0, len(axes) - 1), covariance).reshape(-1, J.sizes["params"])
    polar, rank, tolerance = _polar_factor(C, _checked_ridge(ridge), torch.finfo(values.dtype).eps)
    shares = polar.square().reshape(*(J.sizes[dim] for dim in axes), -1, J.sizes["params"]).sum(-2)
    return _allocation(
        shares.movedim(-1, 0),
        J,
        axes,
        {
            "kind": "linear",
            "num_params": J.sizes["params"],
            "num_outputs": J.sizes.get("outputs", 1),
            "rank": rank,
            "tolerance": tolerance,
            "ridge": float(ridge),
            "metric": "identity"
            if covariance is None
            else ("variances", "covariance")[np.ndim(covariance) - 1],
            "seconds": time.perf_counter() - start,
        },
    )


def _labelled(jacobian: Array | xr.DataArray) -> xr.DataArray:
    """The Jacobian with named axes, (*inputs, outputs, params) or (*inputs, params), in floating point."""
    if isinstance(jacobian, xr.DataArray):
        J = jacobian.copy(data=_tensor(jacobian.values, "jacobian").numpy())
        if J.ndim < 2 or J.dims[-1] != "params" or set(J.dims) <= {"outputs", "params"}:
            raise ValueError(f"jacobian has axes {J.dims}; it needs those of the inputs, and 'params' last")
        J = J.transpose(..., "outputs", "params", missing_dims="ignore")
    else:
        values = _tensor(jacobian, "jacobian").numpy()
        if values.ndim not in (2, 3):
            raise ValueError(
                f"jacobian has shape {values.shape}; it must be (inputs, params) or (inputs, outputs, params). "
                "For inputs with several axes pass an xarray.DataArray with named axes, the last one 'params'"
            )
        J = xr.DataArray(
            values, dims=("input", "params") if values.ndim == 2 else ("input", "outputs", "params")
        )
    if J.size == 0:
        raise ValueError(f"jacobian is empty: shape {J.shape}")
    return J


def _tensor(array: Array, name: str) -> Tensor:
    """Real numbers, finite, in floating point, on the CPU."""
    try:
        tensor = array.detach().cpu() if isinstance(array, Tensor) else torch.as_tensor(np.asarray(array))
    except TypeError as error:
        raise TypeError(f"{name} must be an array or tensor of numbers: {error}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {tensor.dtype}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or inf")
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.double()


def _whiten(J: Tensor, covariance: Array | None) -> Tensor:
    """S^(1/2) J with the symmetric root, whose coordinates stay closest to the inputs."""
    if covariance is None:
        return J
    S = _tensor(covariance, "covariance")
    n = len(J)
    if S.shape == (n,):
        return (root_of_variances(S.double(), "covariance") * J.movedim(0, -1)).movedim(-1, 0)
    if S.shape == (n, n):
        root = root_of_covariance(S.double(), rounding_of(S), "covariance")
        return (root @ J.flatten(1)).reshape(J.shape)
    raise ValueError(
        f"covariance has shape {tuple(S.shape)}, and the jacobian {n} inputs; "
        f"pass {n} variances or a covariance of shape {(n, n)}"
    )


def _checked_ridge(ridge: float) -> float:
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge must be a finite number >= 0, got {ridge}")
    return ridge


def _polar_factor(C: Tensor, ridge: float, eps: float) -> tuple[Tensor, int, float]:
    """C (C'C + ridge)^(-1/2) on the range of C'C, the rank, and its tolerance relative to the largest singular value.

    Singular values up to max(shape) * eps * (the largest) count as zero: as far as rounding of C in the dtype that
    it came in moves them.
    """
    U, s, Vh = torch.linalg.svd(C, full_matrices=False)
    tolerance = max(C.shape) * eps
    keep = s > tolerance * s[0]
    gain = s[keep] / (s[keep].square() + ridge).sqrt()
    return (U[:, keep] * gain) @ Vh[keep], int(keep.sum()), tolerance


def _allocation(shares: Tensor, J: xr.DataArray, axes: list[str], attrs: dict[str, Any]) -> Allocation:
    """From shares of (params, *inputs)."""
    names = [str(name) for name in J["params"].values]
    coords = {dim: J.coords[dim] for dim in axes if dim in J.coords}
    table = xr.DataArray(
        shares.numpy(),
        dims=("parameter", *axes),
        coords={"parameter": names, "bias": ("parameter", np.zeros(len(names))), **coords},
    )
    plain = table.drop_vars("bias")
    return Allocation(
        capacity=plain.sum("parameter"), bias=0.0, by_parameter=plain.sum(axes), table=table, attrs=attrs
    )
