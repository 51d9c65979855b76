"""The closed-form law of shattering: how gradients at two inputs decorrelate with depth (docs/theory.md, section 6).

Index convention: (depth,) or (depth, pairs), from the block at the input up; depth l means block l, or the network
that ends with it. Networks are wide and at random initialisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from capalloc._decoupling import quadrature
from capalloc._decoupling.activations import Elementwise, checked_slope, resolve
from capalloc._decoupling.closed_forms import CLOSED_FORMS
from capalloc._decoupling.gaussian_gates import feature_moment, gaussian_gate_moment
from capalloc._decoupling.kinks import find_kinks
from capalloc._linalg.aliases import Array
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed

#: Rates lambda_l of the blocks of a network of a given depth, by family (Balduzzi et al., 2017).
FAMILIES: dict[str, Callable[[int], Array]] = {
    "plain": lambda depth: np.full(depth, np.inf),  # no skip connection
    "residual": lambda depth: np.ones(depth),  # stream and branch of one energy: a highway that doubles
    "normalised": lambda depth: 1 / np.arange(1.0, depth + 1),  # branches of one energy, as after normalisation
    "scaled": lambda depth: np.full(depth, 1 / depth),  # branches multiplied by 1 / sqrt(depth)
}


@checked
def family_rates(family: str, depth: int) -> Array:
    """The rates of a named family of networks, shape (depth,), for `gradient_correlation`.

    "plain": inf, no skip connections. "residual": 1. "normalised": 1 / l at block l, what normalised branches give.
    "scaled": 1 / depth, branches multiplied by $1 / sqrt(depth)$ (docs/theory.md, section 6).

    Raises:
        ValueError: an unknown family, or a depth below 1.

    Reference: D. Balduzzi et al., The shattered gradients problem, ICML 2017.

    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {tuple(FAMILIES)}, got {family!r}")
    if depth < 1:
        raise ValueError(f"depth must be at least 1 block, got {depth}")
    return FAMILIES[family](depth)


@checked
@undisturbed()
def gradient_correlation(
    rates: ArrayLike,
    correlation: ArrayLike = 0.0,
    activation: str | Elementwise = "relu",
    *,
    variance: ArrayLike = 1.0,
    decoupling: ArrayLike | None = None,
) -> xr.Dataset:
    """The correlation of the gradients at two inputs is the path average of the gate correlations met on the way.

    After L blocks of rates $lambda_l$ it is $prod_l (1 - (1 - c_l) P_l)$, with $P_l = lambda_l / (1 + lambda_l)$ the
    probability that a path crosses gate l and $c_l = A(rho_l) / A(1)$ the gate correlation there, signed; where it is
    positive $1 - c_l$ is the decoupling $d_l$ (docs/theory.md, sections 3 and 6). The correlation of the stream goes up
    as $rho_(l+1) = (rho_l + mu_l k(rho_l)) / (1 + mu_l)$, with the kernel map $k(rho) = B(rho) / B(1)$,
    $B = E[phi(z) phi(z')]$, and $mu_l = lambda_l B(1) / (v A(1))$ the rate at which the branch brings variance.

    Args:
        rates: $lambda_l$, the path energy of branch l over that of its skip connection, shape (depth,); inf for a plain
            layer without one. See `family_rates`.
        correlation: rho_1 of the two inputs of the first block, in [-1, 1]; a number, or (pairs,).
        activation: phi, as in `gaussian_decoupling`.
        variance: v of the pre-activations, whatever that of the stream, as after a normalisation or plain layers scaled
            to keep it; a number, or (depth,). ReLU, leaky ReLU and abs do not depend on it.
        decoupling: keeps $d_l$ at this, in [0, 1], a number or (depth,), whatever the inputs; 1/2 gives the laws of
            Balduzzi et al. The three arguments before are not used then.

    Returns:
        Dataset over "depth" (and "pair"): `correlation`, $rho_l$ of the stream that block l reads (left out for a given
        decoupling); `decoupling`, $d_l$; `crossing`, $P_l$; `gradient`, the correlation of the gradients of the network
        that ends with block l; `index`, the shattering index of that network, the sum of d P.

    Raises:
        ValueError: rates that are negative, NaN, none or on several axes; correlations or decouplings out of range;
            a variance that is not positive; a variance or a decoupling for another number of blocks; an activation
            whose slope is zero.
        TypeError: an activation that is no function.

    Reference: D. Balduzzi et al., The shattered gradients problem, ICML 2017; J. Donier, Capacity allocation through
    neural network layers, arXiv 1902.08572.

    """
    lambdas = _rates(rates)
    depth = len(lambdas)
    if decoupling is not None:
        fixed = _by_depth("decoupling", decoupling, depth)
        if not ((fixed >= 0) & (fixed <= 1)).all():
            raise ValueError(f"decoupling must lie in [0, 1], got values from {fixed.min()} to {fixed.max()}")
        return _dataset({}, 1 - fixed, crossing(lambdas))
    start = _correlations(correlation)
    variances = _by_depth("variance", variance, depth)
    if not (np.isfinite(variances) & (variances > 0)).all():
        low, high = variances.min(), variances.max()
        raise ValueError(f"variance must be positive and finite, got values from {low} to {high}")
    chosen = resolve(activation)
    checked_slope(chosen)
    stream, gates = _carried(lambdas, np.atleast_1d(start), chosen, variances)
    shape = (depth, *start.shape)
    return _dataset({"correlation": stream.reshape(shape)}, gates.reshape(shape), crossing(lambdas))


def crossing(rate: Array) -> Array:
    """P = lambda / (1 + lambda), 1 for a plain layer."""
    return 1 - 1 / (1 + rate)


def _carried(rates: Array, start: Array, activation: Elementwise, variances: Array) -> tuple[Array, Array]:
    """The stream's and the gates' correlation at every block, (depth, pairs)."""
    rho, streams = start, []
    kinks = _kinks(activation, variances)
    own = gaussian_gate_moment(activation, np.ones_like(variances), variances, kinks=kinks)
    if not (own > 0).all():
        raise ValueError("activation has a slope of zero almost everywhere: no gradient passes its gates")
    for rate, variance, gate in zip(rates, variances, own, strict=True):
        feature = feature_moment(activation, np.append(rho, 1.0), float(variance), kinks)
        streams.append(rho)
        share = crossing(rate * feature[-1] / (variance * gate))  # mu / (1 + mu): of the variance that comes out
        rho = np.clip((1 - share) * rho + share * feature[:-1] / feature[-1], -1.0, 1.0)
    stream = np.array(streams)
    gates = gaussian_gate_moment(activation, stream, variances[:, None], kinks=kinks) / own[:, None]
    return stream, np.clip(gates, -1.0, 1.0)


def _kinks(activation: Elementwise, variances: Array) -> Sequence[float]:
    if type(activation) in CLOSED_FORMS:
        return ()  # closed forms need none
    return find_kinks(activation, quadrature.GAUSSIAN_REACH * float(np.sqrt(variances.max())))


def _dataset(given: dict[str, Array], gates: Array, cross: Array) -> xr.Dataset:
    """All that follows from the gate correlations, (depth,) or (depth, pairs), and P, (depth,)."""
    dims = ("depth", "pair")[: gates.ndim]
    each = cross.reshape(-1, *[1] * (gates.ndim - 1))
    d = 1 - np.abs(gates)
    columns = given | {
        "decoupling": d,
        "gradient": np.cumprod(1 - each * (1 - gates), axis=0),
        "index": np.cumsum(each * d, axis=0),
    }
    data = {name: (dims, values) for name, values in columns.items()} | {"crossing": ("depth", cross)}
    return xr.Dataset(data, coords={"depth": np.arange(1, len(cross) + 1)})


def _rates(rates: ArrayLike) -> Array:
    lambdas = np.asarray(rates, dtype=np.float64)
    if lambdas.ndim != 1 or not len(lambdas):
        raise ValueError(f"rates must have one axis, (depth,), and one block at least, got shape {lambdas.shape}")
    if not (lambdas >= 0).all():  # NaN fails too
        raise ValueError(f"rates must be 0 or more, inf for plain layers, got values down to {lambdas.min()}")
    return lambdas


def _correlations(correlation: ArrayLike) -> Array:
    rho = np.asarray(correlation, dtype=np.float64)
    if rho.ndim > 1 or not rho.size:
        raise ValueError(f"correlation must be a number or have one axis, (pairs,), got shape {rho.shape}")
    if not (np.abs(rho) <= 1).all():
        raise ValueError(f"correlation must lie in [-1, 1], got values from {rho.min()} to {rho.max()}")
    return rho


def _by_depth(name: str, value: ArrayLike, depth: int) -> Array:
    found = np.asarray(value, dtype=np.float64)
    if found.shape not in ((), (depth,)):
        raise ValueError(f"{name} must be a number or have one value for each of {depth} blocks, got {found.shape}")
    return np.broadcast_to(found, (depth,))
