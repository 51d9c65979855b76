"""Capacity of a layered network at any decoupling, by a recursion on second moments (docs/decoupling.md).

f(x) = W_L D_(L-1) W_(L-1) ... D_1 W_1 x with random gates D_l = diag(a_l), independent from layer to layer.
Index convention: j, J are units of a layer and i, I those of the layer below; k, K constraint functions, of which
number 0 is the gradient g of the output itself; q, r the parameters of one layer. M is (units, units, functions,
functions): M_jJkK = sum over outputs of E[c_jk c_JK].
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from capalloc._linalg.symmetric import eigh
from capalloc._runtime.arguments import checked
from capalloc._runtime.memory import FLOAT64, budget_of
from capalloc._runtime.surroundings import undisturbed

#: Eigenvalues of the normalised Gram matrix below this share of the largest count as zero.
RTOL = 1e-12
#: The rank is called unclear when eigenvalues stand within this factor of the bound.
CLEAR = 30.0


@checked
@undisturbed()
def propagate_moments(
    weights: Sequence[Tensor],
    gate_moments: Sequence[Tensor],
    constraints: Sequence[Tensor] | None = None,
    *,
    metric: Tensor | None = None,
    ridge: float = 0.0,
    rtol: float = RTOL,
) -> tuple[Tensor, ...]:
    """Capacity of every unit of every layer of $f = W_L D_(L-1) ... D_1 W_1 x$, at any decoupling of its gates.

    Exact where gates are independent of the inputs and, layer from layer, of each other (docs/theory.md, section
    3). The moments of the constraint functions of all parameters above a layer, and of the gradient g ($k = 0$), are
    pulled down through $A^(l) = E[a a']$, and the layer's own parameters join them by the product rule
    $d(W'D g) = W'D dg + dW'D g$:

    - $M_iIkK <- sum_jJ W_ji W_JI A_jJ M_jJkK$,
    - $M_iIqK = sum_jJ T_qji W_JI A_jJ M_jJ0K$,
    - $M_iIqr = sum_jJ T_qji T_rJI A_jJ M_jJ00$, with $T_q = dW / dtheta_q$,

    from $M_jJ00 = 1[j = J]$ at the outputs; $kappa_j = trace((sum_j C_j)^+ C_j)$ with
    $C_j = (S_l^(1/2) M S_l^(1/2))_jj$, where $S_l = A^(l) o (W_l S_(l-1) (W_l)')$ is the second moment of the layer's
    signal. Gates that are all equal ($A = 1 1'$) give the linear capacity of the product matrix, diagonal A the Markov
    rule of section 4.

    Args:
        weights: $W_1 ... W_L$ from the inputs to the outputs, (units, units below) each.
        gate_moments: $A^(1) ... A^(L-1)$, one (units, units) matrix for each hidden layer: from
            `gaussian_gate_moment`, from `gate_moments` of a model, or $(1 - delta) 1 1' + delta I$.
        constraints: for each layer $T = dW / dtheta$, (parameters, units, units below), which ties, fixes or rotates
            weights: a convolution has one row for each kernel entry, a fixed layer none. By default every entry of
            every matrix is a parameter.
        metric: second moment $S_0$ of the inputs: None for the identity, variances (inputs,), or a matrix.
        ridge: non-negative, in units of G, as in `measure`.
        rtol: eigenvalues of the Gram matrix of normalised constraint functions below `rtol` times the largest count
            as zero.

    Returns:
        L tensors in float64: capacity at the inputs, at hidden layer 1, ..., at hidden layer L - 1. Layer l holds
        the capacity of the parameters above it, and its sum is their rank.

    Raises:
        ValueError: shapes that do not follow one another, a gate moment or metric that is no covariance.
        MemoryError: $units^2 x parameters^2$ numbers do not fit.

    Warns:
        RuntimeWarning: eigenvalues close to `rtol`: the rank, and so the capacity, is unclear.

    """
    w = [weight.detach().to(torch.float64) for weight in weights]
    gates = [moment.detach().to(torch.float64) for moment in gate_moments]
    _check_layers(w, gates)
    numbers = [weight.numel() for weight in w] if constraints is None else [len(t) for t in constraints]
    _check_memory(w, numbers)
    tangents = [_entries(weight) for weight in w] if constraints is None else _checked_tangents(constraints, w)
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise ValueError(f"ridge must be non-negative and finite, got {ridge}")
    signals = _signals(w, gates, _metric(metric, w[0]))
    outputs = w[-1].shape[0]
    moments = torch.eye(outputs, dtype=torch.float64, device=w[0].device)[:, :, None, None]
    gates.append(torch.ones_like(moments[:, :, 0, 0]))  # no gate at the outputs
    capacities = []
    for weight, gate, tangent, signal in reversed(list(zip(w, gates, tangents, signals, strict=True))):
        moments = pull_back(moments, weight, gate, tangent)
        capacities.append(capacity(moments[:, :, 1:, 1:], signal, ridge, rtol))
    return tuple(reversed(capacities))


def pull_back(moments: Tensor, weight: Tensor, gate: Tensor, tangent: Tensor) -> Tensor:
    """Moments at the units below a layer y = D W x: of the functions known above it, then of its own parameters.

    Args:
        moments: M above, (units, units, functions, functions), number 0 the gradient.
        weight: W, (units, units below).
        gate: A = E[a a'], (units, units).
        tangent: dW / dtheta, (parameters, units, units below).

    Returns:
        M below, (units below, units below, functions + parameters, functions + parameters).

    """
    gated = moments * gate[:, :, None, None]
    old = torch.einsum("ji,jIkK->iIkK", weight, torch.einsum("JI,jJkK->jIkK", weight, gated))
    new_old = torch.einsum("qji,jIK->iIqK", tangent, torch.einsum("JI,jJK->jIK", weight, gated[:, :, 0]))
    new = torch.einsum("qji,rjI->iIqr", tangent, torch.einsum("rJI,jJ->rjI", tangent, gated[:, :, 0, 0]))
    upper = torch.cat([old, new_old.permute(1, 0, 3, 2)], 3)
    return torch.cat([upper, torch.cat([new_old, new], 3)], 2)


def capacity(moments: Tensor, metric: Tensor, ridge: float = 0.0, rtol: float = RTOL) -> Tensor:
    """kappa_j = trace((sum_j C_j)^+ C_j), with C_j = (S^(1/2) M S^(1/2))_jj (docs/theory.md, sections 2 and 3).

    Args:
        moments: M of the constraint functions, (units, units, functions, functions).
        metric: S, (units, units).
        ridge: added to the Gram matrix.
        rtol: relative bound below which an eigenvalue of the normalised Gram matrix counts as zero.

    Returns:
        kappa, (units,).

    """
    root = _root(metric)
    by_unit = torch.einsum("ja,jb,abkK->jkK", root, root, moments)
    gram = by_unit.sum(0)
    # Parameters in units of their own constraint: ranks become comparable, and kappa does not change.
    size = gram.diagonal().clamp(min=0).sqrt()
    inverse_size = torch.where(size > 0, 1 / size, 0)
    if ridge:
        inverse = torch.linalg.inv(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    else:
        inverse = _pseudo_inverse(gram * inverse_size * inverse_size[:, None], rtol)
        inverse = inverse * inverse_size * inverse_size[:, None]
    kappa: Tensor = torch.einsum("jkK,kK->j", by_unit, inverse)
    return kappa


def _pseudo_inverse(gram: Tensor, rtol: float) -> Tensor:
    if not len(gram):
        return gram
    values, vectors = eigh((gram + gram.T) / 2)
    bound = rtol * values[-1].clamp(min=0)
    unclear = int(((values > bound / CLEAR) & (values < bound * CLEAR)).sum())
    if unclear:
        warnings.warn(
            f"{unclear} eigenvalues of the Gram matrix lie within a factor of {CLEAR:g} of rtol={rtol:g} times the "
            "largest, so the rank is unclear: gates this close to linear need a ridge, or another rtol",
            RuntimeWarning,
            stacklevel=4,
        )
    kept = values > bound
    inverse: Tensor = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    return inverse


def _root(metric: Tensor) -> Tensor:
    """The symmetric root of a covariance."""
    values, vectors = eigh(metric)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _signals(weights: list[Tensor], gates: list[Tensor], metric: Tensor) -> list[Tensor]:
    """S_0, S_1 ... S_(L-1): second moments of the signal, S_l = A o (W S W')."""
    signals = [metric]
    for weight, gate in zip(weights[:-1], gates, strict=True):
        signals.append(gate * (weight @ signals[-1] @ weight.T))
    return signals


def _entries(weight: Tensor) -> Tensor:
    """dW / dW_ji for every entry: (entries, units, units below)."""
    return torch.eye(weight.numel(), dtype=weight.dtype, device=weight.device).reshape(-1, *weight.shape)


def _check_layers(weights: list[Tensor], gates: list[Tensor]) -> None:
    if not weights or any(w.ndim != 2 for w in weights):
        raise ValueError(f"weights must be matrices, at least one; got shapes {[tuple(w.shape) for w in weights]}")
    for k, (below, above) in enumerate(itertools.pairwise(weights)):
        if above.shape[1] != below.shape[0]:
            raise ValueError(
                f"weights[{k + 1}] reads {above.shape[1]} units, but weights[{k}] has {below.shape[0]} rows; "
                "give them from the inputs to the outputs"
            )
    if len(gates) != len(weights) - 1:
        raise ValueError(
            f"gate_moments must hold one matrix for each of {len(weights) - 1} hidden layers, got {len(gates)}"
        )
    for k, (weight, gate) in enumerate(zip(weights, gates, strict=False)):
        if gate.shape != (len(weight), len(weight)):
            raise ValueError(f"gate_moments[{k}] must be {len(weight)} x {len(weight)}, got {tuple(gate.shape)}")
        _check_covariance(gate, f"gate_moments[{k}]")


def _check_covariance(matrix: Tensor, name: str) -> None:
    if not torch.isfinite(matrix).all():
        raise ValueError(f"{name} holds NaN or inf")
    top = matrix.abs().max()
    # Moments may come from float32: their rounding is no reason to refuse them.
    if not torch.allclose(matrix, matrix.T, rtol=0, atol=1e-6 * float(top)):
        raise ValueError(f"{name} must be symmetric: it is a matrix of second moments")
    least = torch.linalg.eigvalsh(matrix)[0]
    if least < -1e-6 * len(matrix) * top:
        raise ValueError(f"{name} must have no negative eigenvalue, and its least is {float(least):.3g}")


def _checked_tangents(constraints: Sequence[Tensor], weights: list[Tensor]) -> list[Tensor]:
    if len(constraints) != len(weights):
        raise ValueError(f"constraints must hold one tensor for each of {len(weights)} layers, got {len(constraints)}")
    tangents = [t.detach().to(weights[0]) for t in constraints]
    for k, (tangent, weight) in enumerate(zip(tangents, weights, strict=True)):
        if tangent.ndim != 3 or tangent.shape[1:] != weight.shape:
            raise ValueError(
                f"constraints[{k}] must be (parameters, {weight.shape[0]}, {weight.shape[1]}), the derivative of "
                f"weights[{k}] by each parameter; got {tuple(tangent.shape)}"
            )
    return tangents


def _metric(metric: Tensor | None, first: Tensor) -> Tensor:
    inputs = first.shape[1]
    if metric is None:
        return torch.eye(inputs, dtype=first.dtype, device=first.device)
    matrix = metric.detach().to(first)
    matrix = torch.diag(matrix) if matrix.ndim == 1 else matrix
    if matrix.shape != (inputs, inputs):
        raise ValueError(f"metric must be ({inputs},) or ({inputs}, {inputs}), got {tuple(metric.shape)}")
    _check_covariance(matrix, "metric")
    return matrix


def _check_memory(weights: list[Tensor], numbers: list[int]) -> None:
    functions, largest = 1, 0
    for weight, number in reversed(list(zip(weights, numbers, strict=False))):
        functions += number
        largest = max(largest, max(weight.shape) ** 2 * functions**2)
    # The moments of a layer, those of the layer below, and the product between them.
    budget_of(weights[0].device).set_aside(
        3 * FLOAT64 * largest,
        "the moment recursion, units^2 x parameters^2 numbers,",
        "tie or fix weights with constraints=, or use propagate(), whose cost is a few passes",
    )
