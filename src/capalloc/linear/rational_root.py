"""The symmetric root of a covariance that one can only multiply and solve with: a rational approximation.

    S^(1/2) = S (2/pi) int_0^inf (S + t^2)^-1 dt

After the substitution t = sqrt(low) sc(u), with Jacobi's elliptic function for the spectrum [low, high], the integrand
is periodic and analytic, so the midpoint rule converges geometrically: the relative error of N nodes is of the order of
exp(-2 pi^2 N / (log(high / low) + 3)), 16 nodes for 1e-10 at condition 1e4 (N. Hale, N. J. Higham and
L. N. Trefethen, Computing A^alpha, log(A) and related matrix functions by contour integrals, SIAM J. Numer. Anal. 46,
2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import ellipj, ellipkm1
from torch import Tensor

#: Relative error of the root that the number of nodes is chosen for.
ROOT_TOLERANCE = 1e-12

Multiply = Callable[[Tensor], Tensor]
ShiftedSolve = Callable[[float, Tensor], Tensor]


def square_root_nodes(low: float, high: float, tolerance: float = ROOT_TOLERANCE) -> list[tuple[float, float]]:
    """Return shifts and weights with sqrt(x) = x sum_j weight_j / (x + shift_j) for every x in [low, high]."""
    modulus = low / high
    period = float(ellipkm1(modulus))
    count = math.ceil((math.log(high / low) + 3) * -math.log(tolerance) / (2 * math.pi**2)) + 1
    sn, cn, dn, _ = ellipj((np.arange(count) + 0.5) * period / count, 1 - modulus)
    shifts = low * np.square(sn / cn)
    weights = 2 * period * math.sqrt(low) / (math.pi * count) * dn / np.square(cn)
    return list(zip(shifts.tolist(), weights.tolist(), strict=True))


def root_product(multiply: Multiply, solve: ShiftedSolve, low: float, high: float, V: Tensor) -> Tensor:
    """Return S^(1/2) V from V -> S V, (shift, V) -> (S + shift)^-1 V and an interval that holds the spectrum."""
    total = V.new_zeros(V.shape)
    for shift, weight in square_root_nodes(low, high):
        total += weight * solve(shift, V)
    return multiply(total)
